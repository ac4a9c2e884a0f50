from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision.ops import box_convert

from drone_kd_training.teachers.soft_labels import (
    Areas,
    Boxes,
    Coverage,
    MaskedBCE,
    add_sure_answers,
    answers_count,
    assign,
    extend_labels,
    masked_negatives,
    negatives_kept,
    split_batch,
)
from drone_kd_training.teachers.teachers import Predictions


def label(name: str, *rows: tuple) -> dict:
    table = np.array(rows, np.float32).reshape(-1, 5)
    return {"im_file": f"/d/{name}.png", "shape": (50, 100), "cls": table[:, :1],
            "bboxes": table[:, 1:]}  # fmt: skip


def as_batch(labels: list[dict]) -> dict:
    """What a loader without augmentation makes of them."""
    counts = [len(lb["cls"]) for lb in labels]
    return {
        "img": torch.zeros(len(labels), 3, 64, 64),
        "cls": torch.from_numpy(np.concatenate([lb["cls"] for lb in labels])),
        "bboxes": torch.from_numpy(np.concatenate([lb["bboxes"] for lb in labels])),
        "batch_idx": torch.repeat_interleave(torch.arange(len(labels)), torch.tensor(counts)),
    }


BOTH, NOBODY, TEACHER = (
    Coverage((True, True), (True, True)),
    Coverage((True, False), (False, False)),
    Coverage((False, False), (True, True)),
)


def test_answers_and_frames_travel_as_rows_of_the_labels():
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
    assert frames == 2 and scores.shape == (3, 2)
    batch = split_batch(as_batch(labels), 2, kinds, scores)
    assert batch["cls"].tolist() == [[1.0]] and batch["batch_idx"].tolist() == [0]
    answers = batch["answers"]
    assert answers.frame.tolist() == [0, 2, 2]
    assert answers.cxcywh[0].tolist() == pytest.approx([0.5, 0.5, 0.1, 0.1])
    assert answers.scores[:, 0].tolist() == pytest.approx([0.2, 0.4, 0.9])
    areas = batch["areas"]
    assert areas.frame.tolist() == [0, 1, 2]
    assert areas.cxcywh.tolist() == [[0.5, 0.5, 1.0, 1.0]] * 3
    assert areas.labelled.tolist() == [[True, True], [False, False], [True, True]]
    assert areas.open.tolist() == [[False, False], [True, True], [False, False]]
    assert areas.partial


def test_without_kinds_every_class_is_labelled():
    labels = [label("a", (1, 0.5, 0.5, 0.1, 0.1))]
    scores, _ = extend_labels(labels, 2, None, {})
    assert "areas" not in split_batch(as_batch(labels), 2, None, scores)


def mosaic(*kinds: Coverage) -> dict:
    """A batch of one picture that shows frames of these kinds side by side."""
    batch = as_batch([label("a")])
    n = len(kinds)
    boxes = torch.tensor([[(i + 0.5) / n, 0.5, 1 / n, 1.0] for i in range(n)])
    table = torch.tensor([[k.labelled, k.answered] for k in kinds])
    batch["areas"] = Areas(torch.zeros(n, dtype=torch.long), boxes, table[:, 0], table[:, 1])
    return batch


def test_each_class_is_taught_by_who_covers_it():
    batch = mosaic(BOTH, NOBODY, TEACHER, Coverage((True, False), (True, True)))
    centres = torch.tensor([[0.1, 0.3], [0.3, 0.3], [0.6, 0.3], [0.9, 0.3], [0.9, 0.8]])
    box = torch.tensor([[0.1, 0.3, 0.1, 0.1]]).repeat(4, 1)
    box[:, 0] = torch.tensor([0.1, 0.3, 0.6, 0.9])  # one in each frame
    none = torch.zeros(4, dtype=torch.long)
    unsure = Boxes(none, box, torch.tensor([[0.3, 0.3]]).repeat(4, 1))
    kept = negatives_kept(batch, unsure, centres)[0].tolist()
    assert kept == [[1, 1], [1, 0], [0, 0], [1, 0], [1, 1]]
    sure = add_sure_answers(batch, Boxes(none, box, torch.tensor([[0.0, 0.9]]).repeat(4, 1)))
    assert sure["cls"].tolist() == [[1.0], [1.0]]
    assert sure["bboxes"][:, 0].tolist() == pytest.approx([0.6, 0.9])
    unlikely = Boxes(none, box, torch.full((4, 2), 0.05))
    assert negatives_kept(batch, unlikely, centres)[0].tolist() == [
        [1, 1], [1, 0], [1, 1], [1, 1], [1, 1]]  # fmt: skip


def test_what_a_teacher_misses_is_no_background_where_labels_know_better():
    batch = mosaic(BOTH, NOBODY, TEACHER, TEACHER)
    centres = torch.tensor([[0.1, 0.5], [0.2, 0.5], [0.3, 0.5], [0.6, 0.5], [1.5, 0.5]])
    wanted = torch.zeros(1, 5, 2)
    wanted[0, 1, 0] = 0.5
    counts = answers_count(batch, wanted, centres)[0].tolist()
    assert counts == [[0, 0], [1, 0], [0, 0], [1, 1], [0, 0]]


def test_sure_answers_lie_among_the_labels_of_their_frame():
    """Ultralytics' losses take a frame's labels as one stretch, frame after frame."""
    batch = as_batch([label("a"), label("b", (0, 0.5, 0.5, 0.1, 0.1)), label("c")])
    whole = torch.tensor([[0.5, 0.5, 1.0, 1.0]]).repeat(2, 1)
    nobody, both = torch.zeros(2, 2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)
    batch["areas"] = Areas(torch.tensor([0, 2]), whole, nobody, both)
    boxes = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2]])
    answers = Boxes(torch.tensor([2, 0]), boxes, torch.tensor([[0.9, 0.0], [0.0, 0.9]]))
    labelled = add_sure_answers(batch, answers)
    assert labelled["batch_idx"].tolist() == [0, 1, 2]
    assert labelled["cls"].flatten().tolist() == [1, 0, 0]
    assert labelled["bboxes"][[0, 2]].tolist() == boxes.flip(0).tolist()


def test_masked_bce_is_pytorch_s_but_for_what_is_masked():
    logits, target = torch.randn(2, 3, 4), torch.zeros(2, 3, 4)
    target[0, 2, 1] = 0.5
    expected = torch.nn.BCEWithLogitsLoss(reduction="none")(logits, target)
    assert torch.equal(MaskedBCE(torch.ones(2, 3, 4))(logits, target), expected)
    kept = torch.ones(2, 3, 4)
    kept[0, 1:, 2:] = 0
    masked = MaskedBCE(kept)(logits, target)
    assert masked[0, 1, 2:].abs().sum() == 0 and torch.equal(masked[0, 1, :2], expected[0, 1, :2])
    assert torch.equal(masked[0, 2], expected[0, 2])  # an object of one class is none of another
    assert torch.equal(masked[1], expected[1])


def test_both_criteria_of_yolo26_are_masked_for_one_call_only():
    plain = torch.nn.BCEWithLogitsLoss(reduction="none")
    pair = SimpleNamespace(one2many=SimpleNamespace(bce=plain), one2one=SimpleNamespace(bce=plain))
    with pytest.raises(ZeroDivisionError), masked_negatives(pair, torch.ones(1, 1, 1)):
        assert isinstance(pair.one2many.bce, MaskedBCE)
        assert isinstance(pair.one2one.bce, MaskedBCE)
        raise ZeroDivisionError
    assert pair.one2many.bce is plain and pair.one2one.bce is plain


def test_answers_are_assigned_to_the_anchors_that_fit():
    centres = torch.stack(
        torch.meshgrid(torch.arange(4, 64, 8.0), torch.arange(4, 64, 8.0), indexing="xy"), -1
    ).reshape(-1, 2)
    xyxy = torch.cat([centres - 8, centres + 8], -1)[None].repeat(2, 1, 1)
    scores = torch.full((2, len(centres), 2), 0.1)
    box = torch.tensor([[20.0, 20, 36, 36]]) / 64
    answers = Boxes(
        torch.tensor([1]), box_convert(box, "xyxy", "cxcywh"), torch.tensor([[0.1, 0.8]])
    )
    wanted, wanted_xyxy = assign(answers, scores, xyxy, centres, [8, 16], 64)
    assert wanted[0].abs().sum() == 0
    best = wanted[1, :, 1].argmax()
    assert centres[best].tolist() == [28.0, 28.0] and wanted[1, best, 1] == pytest.approx(0.8)
    assert wanted[1, best, 0] == pytest.approx(0.1)
    assert wanted_xyxy[1, best].tolist() == pytest.approx([20.0, 20, 36, 36])
    far = (centres - 28).abs().amax(-1) > 16
    assert wanted[1, far].abs().sum() == 0
    nothing = Boxes(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4), torch.zeros(0, 2))
    assert assign(nothing, scores, xyxy, centres, [8, 16], 64)[0].abs().sum() == 0


def test_duplicates_go_but_other_classes_and_frames_stay():
    box = torch.tensor([[0.5, 0.5, 0.2, 0.2]]).repeat(5, 1)
    scores = torch.tensor([[0.9, 0.1], [0.5, 0.1], [0.1, 0.6], [0.7, 0.0], [0.02, 0.01]])
    kept = Boxes(torch.tensor([0, 0, 0, 1, 1]), box, scores).without_duplicates(0.05)
    assert sorted(kept.scores.amax(-1).tolist()) == pytest.approx([0.6, 0.7, 0.9])
