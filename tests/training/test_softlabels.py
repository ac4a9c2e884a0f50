from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision.ops import box_convert

from training.softlabels import (
    Boxes,
    MaskedBCE,
    add_sure_answers,
    assign,
    extend_labels,
    masked_negatives,
    negatives_kept,
    split_batch,
)
from training.teachers import Predictions


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


def test_answers_and_regions_travel_as_rows_of_the_labels():
    labels = [
        label("a", (1, 0.5, 0.5, 0.1, 0.1)),
        label("b", (0, 0.2, 0.2, 0.1, 0.1)),  # listed as without labels: this one is dropped
        label("000123"),
    ]
    found = {
        "a": (np.array([[50.0, 25, 10, 5]]), np.array([[0.2, 0.7]], np.float32)),
        "123": (np.array([[10.0, 10, 10, 5]] * 2), np.array([[0.4, 0.0], [0.9, 0.0]], np.float32)),
    }
    predictions = Predictions(("car", "person"), found, pixels=True)
    scores, frames = extend_labels(labels, 2, {"/d/b.png"}, predictions)
    assert frames == 2 and scores.shape == (3, 2)
    batch = split_batch(as_batch(labels), 2, scores)
    assert batch["cls"].tolist() == [[1.0]] and batch["batch_idx"].tolist() == [0]
    answers = batch["answers"]
    assert answers.frame.tolist() == [0, 2, 2]
    assert answers.cxcywh[0].tolist() == pytest.approx([0.5, 0.5, 0.1, 0.1])
    assert answers.scores[:, 0].tolist() == pytest.approx([0.2, 0.4, 0.9])
    assert batch["regions"].frame.tolist() == [1]
    assert batch["regions"].cxcywh.tolist() == [[0.5, 0.5, 1.0, 1.0]]


def test_between_sure_and_background_nothing_is_taught_where_nobody_labelled():
    batch = as_batch([label("a", (0, 0.5, 0.5, 0.1, 0.1)), label("b")])
    batch["regions"] = Boxes(
        torch.tensor([1]), torch.tensor([[0.25, 0.5, 0.5, 1.0]]), torch.zeros(1, 0)
    )
    boxes = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.2, 0.8, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2]])
    answers = Boxes(
        torch.tensor([1, 1, 1, 0]),
        torch.cat([boxes, boxes[:1]]),
        torch.tensor([[0.9, 0.0], [0.0, 0.3], [0.9, 0.0], [0.3, 0.0]]),
    )
    labelled = add_sure_answers(batch, answers)  # the third lies outside of the region
    assert labelled["cls"].tolist() == [[0.0], [0.0]]
    assert labelled["batch_idx"].tolist() == [0, 1]
    assert labelled["bboxes"][1].tolist() == boxes[0].tolist()
    centres = torch.tensor([[0.2, 0.2], [0.2, 0.8], [0.25, 0.75], [0.8, 0.8], [0.5, 0.5]])
    kept = negatives_kept(batch, answers, centres)
    assert kept.tolist() == [[1, 1, 1, 1, 1], [1, 0, 0, 1, 1]]


def test_sure_answers_lie_among_the_labels_of_their_frame():
    """Ultralytics' losses take a frame's labels as one stretch, frame after frame."""
    batch = as_batch([label("a"), label("b", (0, 0.5, 0.5, 0.1, 0.1)), label("c")])
    whole = torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    batch["regions"] = Boxes(torch.tensor([0, 2]), whole.repeat(2, 1), torch.zeros(2, 0))
    boxes = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2]])
    answers = Boxes(torch.tensor([2, 0]), boxes, torch.tensor([[0.9, 0.0], [0.0, 0.9]]))
    labelled = add_sure_answers(batch, answers)
    assert labelled["batch_idx"].tolist() == [0, 1, 2]
    assert labelled["cls"].flatten().tolist() == [1, 0, 0]
    assert labelled["bboxes"][[0, 2]].tolist() == boxes.flip(0).tolist()


def test_masked_bce_is_pytorch_s_but_for_what_is_masked():
    logits, target = torch.randn(2, 3, 4), torch.rand(2, 3, 4)
    expected = torch.nn.BCEWithLogitsLoss(reduction="none")(logits, target)
    assert torch.equal(MaskedBCE(torch.ones(2, 3))(logits, target), expected)
    masked = MaskedBCE(torch.tensor([[1.0, 0, 1], [1, 1, 1]]))(logits, target)
    assert masked[0, 1].abs().sum() == 0
    assert torch.equal(masked[1], expected[1])


def test_both_criteria_of_yolo26_are_masked_for_one_call_only():
    plain = torch.nn.BCEWithLogitsLoss(reduction="none")
    pair = SimpleNamespace(one2many=SimpleNamespace(bce=plain), one2one=SimpleNamespace(bce=plain))
    with pytest.raises(ZeroDivisionError), masked_negatives(pair, torch.ones(1, 1)):
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
