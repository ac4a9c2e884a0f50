from pathlib import Path

import pytest
import torch

from drone_kd_training.data.names import DataError
from drone_kd_training.distillation.stored_views import BACKGROUND_LOGIT, StoredViews, frames_hash
from drone_kd_training.distillation.train_loader import View

ANCHORS = 64 + 16
VIEWS = [View(0, 3), View(1, 3), View(0, 5)]


def raw(images: int = 3) -> dict:
    """Return predictions of which three anchors of each image have a score."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.full((images, 2, ANCHORS), -9.0)
    for image in range(images):
        scores[image, image % 2, 10 * image : 10 * image + 3] = torch.tensor([0.5, -1.0, -2.0])
    return {
        "scores": scores,
        "boxes": torch.randn(images, 8, ANCHORS, generator=generator),
        "feats": [torch.zeros(images, 4, 8, 8), torch.zeros(images, 4, 4, 4)],
    }


def test_anchors_with_a_score_stay_and_the_rest_is_background(tmp_path):
    stored, given = StoredViews(tmp_path, {}), raw()
    assert not stored.knows(VIEWS)
    stored.add(VIEWS, given)
    stored.write()
    for found in (stored, StoredViews(tmp_path, {})):
        assert found.knows(VIEWS)
        assert not found.knows([View(2, 3)])
        again = found.of(reversed(VIEWS), torch.device("cpu"))
        kept = given["scores"].flip(0).amax(1, keepdim=True) > -5
        assert kept.sum() == 9
        assert torch.equal(again["scores"][kept.expand(-1, 2, -1)],
                           given["scores"].flip(0)[kept.expand(-1, 2, -1)])  # fmt: skip
        assert (again["scores"][~kept.expand(-1, 2, -1)] == BACKGROUND_LOGIT).all()
        boxes = kept.expand(-1, 8, -1)
        assert torch.allclose(again["boxes"][boxes], given["boxes"].flip(0)[boxes], atol=2e-3)
        assert [f.shape[-2:] for f in again["feats"]] == [(8, 8), (4, 4)]


def test_one_anchor_in_a_hundred_stays_where_none_has_a_score(tmp_path):
    stored, given = StoredViews(tmp_path, {}), raw(1)
    given["scores"] -= 9
    stored.add([View(0, 0)], given)
    assert (stored.of([View(0, 0)], torch.device("cpu"))["scores"] > BACKGROUND_LOGIT).sum() >= 1


def test_predictions_of_another_teacher_are_not_used(tmp_path):
    stored = StoredViews(tmp_path, {"teacher": "a", "imgsz": 320})
    stored.add(VIEWS, raw())
    stored.write()
    assert len(StoredViews(tmp_path, {"imgsz": 320, "teacher": "a"})) == 3
    for other in ({"teacher": "b", "imgsz": 320}, {"teacher": "a", "imgsz": 640}):
        assert len(StoredViews(tmp_path, other)) == 0


def test_two_runs_add_to_one_folder(tmp_path):
    first, second = (StoredViews(tmp_path, {}) for _ in range(2))
    first.add(VIEWS[:1], raw(1))
    second.add(VIEWS[1:], raw(2))
    for stored in (first, second):
        stored.write()
        stored.write()  # nothing is new
    assert StoredViews(tmp_path, {}).knows(VIEWS)
    assert len(list(first.folder.iterdir())) == 2


def file_of(folder: Path) -> Path:
    stored = StoredViews(folder, {})
    stored.add(VIEWS, raw())
    stored.write()
    return next(stored.folder.iterdir())


def test_a_damaged_file_is_refused_by_name(tmp_path):
    path = file_of(tmp_path)
    content = path.read_bytes()
    score = content.index(torch.tensor([0.5, -9.0]).half().numpy().tobytes())
    changed = content[:score] + b"\1" + content[score + 1 :]
    for damaged in (b"", content[: len(content) // 2], b"PK" + content[2:500], changed):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=f"{path.name}: expected a teacher's stored"):
            StoredViews(tmp_path, {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("anchors", torch.full((9,), ANCHORS)),
        ("anchors", torch.full((9,), -1)),
        ("scores", torch.full((9, 2), float("nan"))),
        ("counts", torch.tensor([3, 3, 4])),
        ("counts", torch.tensor([3, 3])),
        ("views", torch.zeros(2, 2, dtype=torch.long)),
        ("grids", torch.tensor([[1, 1]])),
        ("boxes", "text"),
        ("anchors", torch.zeros(9)),
        ("anchors", torch.zeros(9, 1, dtype=torch.long)),
        ("scores", torch.zeros(9)),
        ("grids", torch.tensor([[-2, -2], [-1, -1]])),
    ],
)
def test_tables_that_do_not_fit_are_refused(name, value, tmp_path):
    path = file_of(tmp_path)
    torch.save({**torch.load(path, weights_only=True), name: value}, path)
    with pytest.raises(DataError, match="delete it"):
        StoredViews(tmp_path, {})


def test_the_hash_of_frames_follows_content_and_order(tmp_path):
    paths = [str(tmp_path / name) for name in "ab"]
    for path in paths:
        Path(path).write_text(path, encoding="utf-8")
    assert frames_hash(paths) == frames_hash(list(paths))
    assert frames_hash(paths) != frames_hash(paths[::-1])
    assert frames_hash(paths[:1]) != frames_hash(paths)
