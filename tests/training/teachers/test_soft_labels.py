import numpy as np
import pytest
import torch

from drone_kd_training.data.names import DataError
from drone_kd_training.teachers import soft_labels
from drone_kd_training.teachers.soft_labels import (
    Areas,
    Boxes,
    Coverage,
    Thresholds,
    add_pseudo_labels,
    distilled_classes,
    extend_labels,
    negatives_mask,
    split_batch,
)
from drone_kd_training.teachers.teachers import Predictions


def label(name: str, *rows: tuple) -> dict:
    table = np.array(rows, np.float32).reshape(-1, 5)
    return {"im_file": f"/d/{name}.png", "shape": (50, 100), "cls": table[:, :1],
            "bboxes": table[:, 1:]}  # fmt: skip


def as_batch(labels: list[dict]) -> dict:
    """Return the batch of a loader without augmentation."""
    counts = [len(lb["cls"]) for lb in labels]
    return {
        "img": torch.zeros(len(labels), 3, 64, 64),
        "cls": torch.from_numpy(np.concatenate([lb["cls"] for lb in labels])),
        "bboxes": torch.from_numpy(np.concatenate([lb["bboxes"] for lb in labels])),
        "batch_idx": torch.repeat_interleave(torch.arange(len(labels)), torch.tensor(counts)),
    }


BOTH, NOTHING, TEACHER = (
    Coverage((True, True), (True, True)),
    Coverage((True, False), (False, False)),
    Coverage((False, False), (True, True)),
)


def test_scores_of_a_batch_alone_are_converted():
    class Table(torch.Tensor):
        """Scores that may be indexed, but not converted as a whole."""

        def to(self, *args, **kwargs):
            assert len(self) < 1000
            return super().to(*args, **kwargs)

    scores = torch.rand(1000, 2).as_subclass(Table)
    batch = {"cls": torch.tensor([[2.0], [1001.0], [0.0]]), "batch_idx": torch.zeros(3)}
    batch["bboxes"] = torch.rand(3, 4).double()
    found = split_batch(batch, 2, None, scores)["predictions"].scores
    assert found.dtype == torch.float64
    assert found.tolist() == scores[[0, 999]].double().tolist()


def test_more_predictions_than_ids_are_refused(monkeypatch):
    found = {"a": (np.zeros((4, 4)), np.zeros((4, 2), np.float32))}
    monkeypatch.setattr(soft_labels, "MAX_IDS", 6)
    predictions = Predictions(("car", "person"), found, pixels=False)
    extend_labels([label("a")], 2, None, {}, predictions)
    with pytest.raises(DataError, match=r"up to 3 predictions .* got 4; use fewer"):
        extend_labels([label("a")], 2, [BOTH], {"/d/a.png": 0}, predictions)


def test_predictions_and_frames_travel_as_rows_of_the_labels():
    labels = [
        label("a", (1, 0.5, 0.5, 0.1, 0.1)),
        label("b", (0, 0.2, 0.2, 0.1, 0.1)),  # of a class that is not labelled there: dropped
        label("000123"),
    ]
    found = {
        "a": (np.array([[50.0, 25, 10, 5]]), np.array([[0.2, 0.7]], np.float32)),
        "123": (np.array([[10.0, 10, 10, 5]] * 2), np.array([[0.4, 0.0], [0.9, 0.0]], np.float32)),
    }
    predictions = Predictions(("car", "person"), found, pixels=True)
    kinds = [BOTH, TEACHER]
    kind_of = {"/d/a.png": 0, "/d/b.png": 1, "/d/000123.png": 0}
    scores, frames = extend_labels(labels, 2, kinds, kind_of, predictions)
    assert frames == 2
    assert scores.shape == (3, 2)
    batch = split_batch(as_batch(labels), 2, kinds, scores)
    assert batch["cls"].tolist() == [[1.0]]
    assert batch["batch_idx"].tolist() == [0]
    boxes = batch["predictions"]
    assert boxes.image.tolist() == [0, 2, 2]
    assert boxes.cxcywh[0].tolist() == pytest.approx([0.5, 0.5, 0.1, 0.1])
    assert boxes.scores[:, 0].tolist() == pytest.approx([0.2, 0.4, 0.9])
    areas = batch["areas"]
    assert areas.image.tolist() == [0, 1, 2]
    assert areas.cxcywh.tolist() == [[0.5, 0.5, 1.0, 1.0]] * 3
    assert areas.labelled.tolist() == [[True, True], [False, False], [True, True]]
    assert areas.pseudo_labelled.tolist() == [[False, False], [True, True], [False, False]]
    assert areas.partial


@pytest.mark.parametrize(("stem", "image_id"), [("000123", "123"), ("000000", "0"), ("a", "a")])
def test_predictions_are_found_by_the_number_of_the_image(stem, image_id):
    found = {image_id: (np.array([[0.5, 0.5, 0.1, 0.1]]), np.array([[0.4, 0.0]], np.float32))}
    labels = [label(stem)]
    scores, frames = extend_labels(
        labels, 2, None, {}, Predictions(("car", "person"), found, pixels=False)
    )
    assert frames == len(scores) == 1


def test_without_kinds_every_class_is_labelled():
    labels = [label("a", (1, 0.5, 0.5, 0.1, 0.1))]
    scores, _ = extend_labels(labels, 2, None, {})
    assert "areas" not in split_batch(as_batch(labels), 2, None, scores)


BAND = Thresholds.same(2)


def mosaic(*kinds: Coverage) -> dict:
    """Return a batch of one image that shows frames of these kinds side by side."""
    batch = as_batch([label("a")])
    n = len(kinds)
    boxes = torch.tensor([[(i + 0.5) / n, 0.5, 1 / n, 1.0] for i in range(n)])
    table = torch.tensor([[k.labelled, k.predicted] for k in kinds])
    batch["areas"] = Areas(torch.zeros(n, dtype=torch.long), boxes, table[:, 0], table[:, 1])
    return batch


def test_each_class_is_learned_from_what_covers_it():
    batch = mosaic(BOTH, NOTHING, TEACHER, Coverage((True, False), (True, True)))
    centers = torch.tensor([[0.1, 0.3], [0.3, 0.3], [0.6, 0.3], [0.9, 0.3], [0.9, 0.8]])
    box = torch.tensor([[0.1, 0.3, 0.1, 0.1]]).repeat(4, 1)
    box[:, 0] = torch.tensor([0.1, 0.3, 0.6, 0.9])  # one in each frame
    none = torch.zeros(4, dtype=torch.long)
    ignored = Boxes(none, box, torch.tensor([[0.3, 0.3]]).repeat(4, 1))
    mask = negatives_mask(batch, ignored, centers, BAND)[0].tolist()
    assert mask == [[1, 1], [1, 0], [0, 0], [1, 0], [1, 1]]
    labelled = add_pseudo_labels(
        batch, Boxes(none, box, torch.tensor([[0.0, 0.9]]).repeat(4, 1)), BAND.high
    )
    assert labelled["cls"].tolist() == [[1.0], [1.0]]
    assert labelled["bboxes"][:, 0].tolist() == pytest.approx([0.6, 0.9])
    unlikely = Boxes(none, box, torch.full((4, 2), 0.05))
    assert negatives_mask(batch, unlikely, centers, BAND)[0].tolist() == [
        [1, 1], [1, 0], [1, 1], [1, 1], [1, 1]]  # fmt: skip


def test_objects_that_the_teacher_misses_are_not_background_where_labels_exist():
    batch = mosaic(BOTH, NOTHING, TEACHER, TEACHER)
    centers = torch.tensor([[0.1, 0.5], [0.2, 0.5], [0.3, 0.5], [0.6, 0.5], [1.5, 0.5]])
    targets = torch.zeros(1, 5, 2)
    targets[0, 1, 0] = 0.5
    mask = distilled_classes(batch, targets, centers)[0].tolist()
    assert mask == [[0, 0], [1, 0], [0, 0], [1, 1], [0, 0]]


def test_pseudo_labels_are_sorted_into_the_labels_of_their_image():
    """Ultralytics' losses expect the labels of an image in one stretch, image after image."""
    batch = as_batch([label("a"), label("b", (0, 0.5, 0.5, 0.1, 0.1)), label("c")])
    whole = torch.tensor([[0.5, 0.5, 1.0, 1.0]]).repeat(2, 1)
    unlabelled, both = torch.zeros(2, 2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)
    batch["areas"] = Areas(torch.tensor([0, 2]), whole, unlabelled, both)
    boxes = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2]])
    predicted = Boxes(torch.tensor([2, 0]), boxes, torch.tensor([[0.9, 0.0], [0.0, 0.9]]))
    labelled = add_pseudo_labels(batch, predicted, BAND.high)
    assert labelled["batch_idx"].tolist() == [0, 1, 2]
    assert labelled["cls"].flatten().tolist() == [1, 0, 0]
    assert labelled["bboxes"][[0, 2]].tolist() == boxes.flip(0).tolist()


def test_duplicates_are_removed_per_class_and_image():
    box = torch.tensor([[0.5, 0.5, 0.2, 0.2]]).repeat(5, 1)
    scores = torch.tensor([[0.9, 0.1], [0.5, 0.1], [0.1, 0.6], [0.7, 0.0], [0.02, 0.01]])
    kept = Boxes(torch.tensor([0, 0, 0, 1, 1]), box, scores).without_duplicates(0.05)
    assert sorted(kept.scores.amax(-1).tolist()) == pytest.approx([0.6, 0.7, 0.9])
