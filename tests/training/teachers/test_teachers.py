import json

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_convert
from ultralytics.nn.tasks import RTDETRDetectionModel

from drone_kd_training.models.checkpoints import UnusableModelError, load_model
from drone_kd_training.models.torch_backend import BoxBackend
from drone_kd_training.teachers.teachers import (
    BOX_HEADS,
    BoxTeacher,
    DetectTeacher,
    _in_tiles,
    open_teacher,
)
from tiny_training import NAMES, SIZE, save_checkpoint


def test_a_detector_answers_per_anchor(tmp_path):
    teacher = open_teacher(str(save_checkpoint(tmp_path / "t.pt")), NAMES)
    assert isinstance(teacher, DetectTeacher) and teacher.names == NAMES
    answer = teacher(torch.rand(2, 3, SIZE, SIZE), {})
    assert answer["scores"].shape[:2] == (2, len(NAMES))


def test_tiles_are_put_together_as_if_the_picture_had_been_seen_whole():
    def look(pictures: torch.Tensor) -> dict:
        """A detector whose answers depend on a few pixels round each anchor."""
        feats = [F.avg_pool2d(pictures, s + 8, s, padding=4) for s in (8, 16)]
        flat = torch.cat([f.flatten(2) for f in feats], dim=-1)
        return {"feats": feats, "boxes": flat[:, :2] * 2, "scores": flat[:, 2:] + 1}

    pictures = torch.rand(2, 3, 480, 480)
    whole, tiled = look(pictures), _in_tiles(look, pictures, 320, [8, 16])
    for key in ("boxes", "scores"):
        assert torch.allclose(whole[key], tiled[key], atol=1e-6)
    for a, b in zip(whole["feats"], tiled["feats"], strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_rt_detr_answers_with_boxes(tmp_path):
    torch.manual_seed(0)
    model = RTDETRDetectionModel("rtdetr-l.yaml", nc=2, verbose=False)
    model.names = dict(enumerate(NAMES))
    torch.save({"model": model}, tmp_path / "rtdetr.pt")
    teacher = open_teacher(str(tmp_path / "rtdetr.pt"), NAMES)
    assert isinstance(teacher, BoxTeacher) and teacher.head is None
    model.model[-1].dec_score_head[-1].bias.data.fill_(2.0)
    torch.save({"model": model}, tmp_path / "rtdetr.pt")
    picture = torch.rand(2, 3, 128, 128)
    with torch.no_grad():
        answer = open_teacher(str(tmp_path / "rtdetr.pt"), NAMES)(picture, {})
        plain = model.float().eval()(picture)[0]  # (B, 300, 4 + C), what Ultralytics decodes
    assert set(answer.frame.tolist()) == {0, 1} and answer.scores.shape[1] == 2
    first = answer.frame == 0
    assert torch.allclose(answer.scores[first].amax(-1).sort()[0], plain[0, :, 4].sort()[0],
                          atol=1e-5) or plain.shape[-1] != 6  # fmt: skip


def test_rt_detr_behind_the_detectors_interface_gives_the_same_boxes(tmp_path):
    torch.manual_seed(0)
    model = RTDETRDetectionModel("rtdetr-l.yaml", nc=2, verbose=False)
    model.names = dict(enumerate(NAMES))
    torch.save({"model": model, "train_args": {"imgsz": 128}}, tmp_path / "rtdetr.pt")
    teacher = open_teacher(str(tmp_path / "rtdetr.pt"), NAMES)
    backend = BoxBackend(load_model(str(tmp_path / "rtdetr.pt"), also=BOX_HEADS)[0])
    assert backend.spec.classes == NAMES and backend.spec.input_width == 128
    frames = torch.randint(0, 255, (1, 128, 128, 3), dtype=torch.uint8)
    (rows,) = backend.infer(frames.numpy())
    with torch.no_grad():
        answer = teacher(frames.permute(0, 3, 1, 2).flip(1) / 255, {})
    xyxy = box_convert(answer.cxcywh, "cxcywh", "xyxy").clamp(0, 1) * 128
    scores, class_ids = answer.scores.max(dim=1)
    expected = torch.cat([xyxy, scores[:, None], class_ids[:, None]], dim=1)
    found = torch.from_numpy(rows)
    assert (found[1:, 4] <= found[:-1, 4]).all()  # best first
    distance = (expected[:, None] - found[None]).abs().amax(dim=-1)
    assert distance.amin(dim=1).max() < 0.01


def test_predictions_are_read_from_yolo_files_and_from_coco(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("1 0.5 0.5 0.2 0.1 0.75\n0 0.1 0.1 0.1 0.1 0.25\n")
    yolo = open_teacher(str(tmp_path / "labels"), NAMES)
    boxes, scores = yolo.found["a"]
    assert boxes[0].tolist() == pytest.approx([0.5, 0.5, 0.2, 0.1]) and not yolo.pixels
    assert scores.tolist() == [[0.0, 0.75], [0.25, 0.0]]
    entry = {"image_id": "a", "category_id": 1, "bbox": [40, 45, 20, 10], "score": 0.75}
    (tmp_path / "p.json").write_text(json.dumps([entry]))
    coco = open_teacher(str(tmp_path / "p.json"), NAMES)
    assert coco.found["a"][0].tolist() == [[50.0, 50.0, 20.0, 10.0]] and coco.pixels


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("0 0.5 0.5 0.1 0.1", "6 numbers"),
        ("7 0.5 0.5 0.1 0.1 0.5", "class 7, but there are 2 classes"),
        ("0 0.5 0.5 0.1 0.1 50", r"confidence of 50 is not in \[0, 1\]"),
        (None, "holds no predictions"),
    ],
)
def test_predictions_that_cannot_be_used_are_refused(tmp_path, content, expected):
    if content:
        (tmp_path / "a.txt").write_text(content + "\n")
    with pytest.raises(UnusableModelError, match=expected):
        open_teacher(str(tmp_path), NAMES)


def test_a_broken_coco_file_is_refused(tmp_path):
    (tmp_path / "p.json").write_text('[{"image_id": 1}]')
    with pytest.raises(UnusableModelError, match="not a COCO results file"):
        open_teacher(str(tmp_path / "p.json"), NAMES)
