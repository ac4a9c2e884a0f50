import json

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_convert

from drone_kd_training.models.checkpoints import UnusableModelError, load_model
from drone_kd_training.models.torch_backend import BoxBackend
from drone_kd_training.teachers import teachers
from drone_kd_training.teachers.teachers import (
    BOX_HEADS,
    BoxTeacher,
    DetectTeacher,
    open_teacher,
    predict_in_tiles,
)
from tiny_training import NAMES, SIZE, save_checkpoint, save_rtdetr


def test_detector_predicts_per_anchor(tmp_path):
    teacher = open_teacher(str(save_checkpoint(tmp_path / "t.pt")), NAMES)
    assert isinstance(teacher, DetectTeacher)
    assert teacher.names == NAMES
    prediction = teacher(torch.rand(2, 3, SIZE, SIZE), {})
    assert prediction["scores"].shape[:2] == (2, len(NAMES))


def test_merged_tiles_equal_the_prediction_of_the_whole_image():
    def predict(images: torch.Tensor) -> dict:
        """A detector whose predictions depend on a few pixels around each anchor."""
        feats = [F.avg_pool2d(images, s + 8, s, padding=4) for s in (8, 16)]
        flat = torch.cat([f.flatten(2) for f in feats], dim=-1)
        return {"feats": feats, "boxes": flat[:, :2] * 2, "scores": flat[:, 2:] + 1}

    images = torch.rand(2, 3, 480, 480)
    whole, tiled = predict(images), predict_in_tiles(predict, images, 320, [8, 16])
    for key in ("boxes", "scores"):
        assert torch.allclose(whole[key], tiled[key], atol=1e-6)
    for a, b in zip(whole["feats"], tiled["feats"], strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_rtdetr_predicts_the_boxes_that_ultralytics_decodes(tmp_path):
    checkpoint = save_rtdetr(tmp_path / "rtdetr.pt")
    teacher = open_teacher(str(checkpoint), NAMES)
    assert isinstance(teacher, BoxTeacher)
    assert teacher.head is None
    images = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        boxes = teacher(images, {})
        model, _ = load_model(str(checkpoint), also=BOX_HEADS)
        decoded = model.eval()(images)[0]  # (B, k, 6): cxcywh, score, class
    assert boxes.image.bincount().tolist() == [20, 20]  # every query is above LOWEST_SCORE
    for image, rows in enumerate(decoded):
        own = boxes[boxes.image == image]
        best = own.scores.flatten().sort(descending=True).values[: len(rows)]
        assert torch.allclose(best, rows[:, 4], atol=1e-5)
        for row in rows:
            same_score = (own.scores[:, int(row[5])] - row[4]).abs() < 1e-5
            assert torch.isclose(own.cxcywh[same_score], row[:4], atol=1e-5).all(dim=1).any()


def test_rtdetr_drops_predictions_below_the_lowest_score(tmp_path):
    teacher = open_teacher(str(save_rtdetr(tmp_path / "rtdetr.pt", score_bias=-9.0)), NAMES)
    assert len(teacher(torch.rand(1, 3, SIZE, SIZE), {}).image) == 0


def test_rtdetr_behind_the_detectors_interface_gives_the_same_boxes(tmp_path):
    checkpoint = str(save_rtdetr(tmp_path / "rtdetr.pt"))
    teacher = open_teacher(checkpoint, NAMES)
    backend = BoxBackend(load_model(checkpoint, also=BOX_HEADS)[0])
    assert backend.spec.classes == NAMES
    assert backend.spec.input_width == SIZE
    frames = torch.randint(0, 255, (1, SIZE, SIZE, 3), dtype=torch.uint8)
    (rows,) = backend.infer(frames.numpy())
    with torch.no_grad():
        boxes = teacher(frames.permute(0, 3, 1, 2).flip(1) / 255, {})
    xyxy = box_convert(boxes.cxcywh, "cxcywh", "xyxy").clamp(0, 1) * SIZE
    scores, class_ids = boxes.scores.max(dim=1)
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
        ("7 0.5 0.5 0.1 0.1 0.5", "expected classes 0 to 1, got 7; list the class names in"),
        ("0 0.5 0.5 0.1 0.1 50", r"expected confidences in \[0, 1\], got 50"),
        ("0 0.5 0.5 0.1 0.1 -0.5", r"expected confidences in \[0, 1\], got -0.5"),
        ("nan 0.5 0.5 0.1 0.1 0.5", "expected classes 0 to 1, got nan"),
        ("1e308 0.5 0.5 0.1 0.1 0.5", "expected classes 0 to 1, got inf"),
        ("0 nan 0.5 0.1 0.1 0.5", "expected boxes with a size ≥ 0"),
        ("0 0.5 0.5 -0.1 0.1 0.5", "expected boxes with a size ≥ 0"),
        ("0 1e308 0.5 0.1 0.1 0.5", "expected boxes with a size ≥ 0"),
        ("0 0.5 0.5 0.1 0.1 nan", r"expected confidences in \[0, 1\], got nan"),
        ("0 0.5 0.5 0.1 0.1 0.5\n" * 10_001, "at most 10000 predictions"),
        ("0 " * 2_500_000, "at most 4 MB"),
        ("\x1b[31m 0.5 0.5 0.1 0.1 0.5", "6 numbers"),
        (None, "holds no predictions"),
    ],
)
def test_unusable_predictions_are_refused(tmp_path, content, expected):
    if content:
        (tmp_path / "a.txt").write_text(content + "\n")
    with pytest.raises(UnusableModelError, match=expected):
        open_teacher(str(tmp_path), NAMES)


RESULT = '[{"image_id": "a", "category_id": 1, "bbox": [%s, 45, 20, 10], "score": %s}]'


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"image_id": 1}]', "not a COCO results file"),
        ('{"a": 1}', "not a COCO results file"),
        ("[" * 1_000_000, "too many levels"),
        (RESULT % ("NaN", 0.5), "expected boxes"),
        (RESULT % ("1e400", 0.5), "expected boxes"),
        (RESULT % ("9" * 4000, 0.5), "OverflowError"),
        (RESULT % (1, "NaN"), "expected confidences"),
        (RESULT % (1, '"x"'), "ValueError"),
        (RESULT.replace('y_id": 1', 'y_id": 1e9') % (1, 0.5), "expected classes"),
    ],
    ids=lambda text: text[:30],
)
def test_broken_coco_results_are_refused_in_one_line(tmp_path, content, expected):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(UnusableModelError, match=expected) as error:
        open_teacher(str(tmp_path / "p.json"), NAMES)
    assert str(error.value).isprintable() and len(str(error.value)) < 500


def test_class_list_of_predictions_is_checked(tmp_path):
    (tmp_path / "a.txt").write_text("1 0.5 0.5 0.2 0.1 0.75\n")
    listed = tmp_path / "classes.txt"
    listed.write_bytes(b"car\r\nperson\r\n\r\n")
    assert open_teacher(str(tmp_path), ()).names == NAMES
    for text, expected in (
        ("car\nper\x1bson\n", "without control"),
        ("\n".join(map(str, range(100_000))), "1 to 10000 class names"),
        ("x" * 2_000_000, "at most 1 MB"),
    ):
        listed.write_text(text)
        with pytest.raises(UnusableModelError, match=expected):
            open_teacher(str(tmp_path), NAMES)


def test_predictions_times_classes_have_a_limit(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("0 0.5 0.5 0.1 0.1 0.5\n" * 2)
    monkeypatch.setattr(teachers, "MAX_SCORES", 4 * len(NAMES))
    assert open_teacher(str(tmp_path), NAMES)
    monkeypatch.setattr(teachers, "MAX_SCORES", 4 * len(NAMES) - 1)
    with pytest.raises(UnusableModelError, match="scores in all"):
        open_teacher(str(tmp_path), NAMES)
