from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.ops import box_convert

from drone_kd_training.distillation.box_assignment import (
    GuidedAssigner,
    MaskedBCE,
    assign_boxes,
    guided_criterion,
)
from drone_kd_training.teachers.soft_labels import Boxes


def test_masked_bce_equals_pytorchs_outside_the_mask():
    logits, target = torch.randn(2, 3, 4), torch.zeros(2, 3, 4)
    target[0, 2, 1] = 0.5
    expected = nn.BCEWithLogitsLoss(reduction="none")(logits, target)
    assert torch.equal(MaskedBCE(torch.ones(2, 3, 4))(logits, target), expected)
    mask = torch.ones(2, 3, 4)
    mask[0, 1:, 2:] = 0
    masked = MaskedBCE(mask)(logits, target)
    assert masked[0, 1, 2:].abs().sum() == 0
    assert torch.equal(masked[0, 1, :2], expected[0, 1, :2])
    assert torch.equal(masked[0, 2], expected[0, 2])  # an object of one class is no other
    assert torch.equal(masked[1], expected[1])


def branch() -> SimpleNamespace:
    return SimpleNamespace(bce=nn.BCEWithLogitsLoss(reduction="none"), assigner=nn.Identity())


def test_guided_criterion_leaves_the_given_one_as_it_is():
    """It is the given one that checkpoints hold."""
    plain = branch()
    bce, assigner = plain.bce, plain.assigner
    assignment = torch.rand(1, 5, 2), torch.rand(1, 5, 4)
    guided = guided_criterion(plain, assignment, torch.ones(1, 5, 2))
    assert isinstance(guided.bce, MaskedBCE)
    assert isinstance(guided.assigner, GuidedAssigner)
    assert plain.bce is bce
    assert plain.assigner is assigner
    assert isinstance(guided_criterion(plain).bce, nn.BCEWithLogitsLoss)


def test_guided_criterion_masks_both_branches_and_assigns_in_one_to_many():
    pair = SimpleNamespace(one2many=branch(), one2one=branch(), o2m=0.8)
    assignment = torch.rand(1, 5, 2), torch.rand(1, 5, 4)
    guided = guided_criterion(pair, assignment, torch.ones(1, 5, 2))
    assert guided.o2m == 0.8
    assert isinstance(guided.one2many.bce, MaskedBCE)
    assert isinstance(guided.one2one.bce, MaskedBCE)
    assert isinstance(guided.one2many.assigner, GuidedAssigner)
    assert guided.one2many.assigner.predictions is assignment
    assert guided.one2one.assigner.predictions is None
    assert isinstance(pair.one2many.assigner, nn.Identity)


def test_guided_assigner_replaces_scores_and_boxes_only_and_keeps_the_targets():
    scores, xyxy = torch.rand(1, 5, 2), torch.rand(1, 5, 4)
    found = tuple(torch.rand(1, 5, 2) for _ in range(5))
    calls = []

    def record(*given, **options):
        calls.append((given, options))
        return found

    assigner = GuidedAssigner(record, (scores, xyxy))
    assert (
        assigner(torch.zeros(1, 5, 2), torch.zeros(1, 5, 4), "centers", "labels", topk=3) is found
    )
    assert assigner.targets is found[2]
    own = torch.zeros(1, 5, 2), torch.zeros(1, 5, 4)
    GuidedAssigner(record, None)(*own, "centers")
    assert calls.pop()[0][:2] == own
    ((given, options),) = calls
    assert given[0] is scores
    assert given[1] is xyxy
    assert given[2:] == ("centers", "labels")
    assert options == {"topk": 3}


def test_boxes_are_assigned_to_the_anchors_that_fit():
    centers = torch.stack(
        torch.meshgrid(torch.arange(4, 64, 8.0), torch.arange(4, 64, 8.0), indexing="xy"), -1
    ).reshape(-1, 2)
    xyxy = torch.cat([centers - 8, centers + 8], -1)[None].repeat(2, 1, 1)
    scores = torch.full((2, len(centers), 2), 0.1)
    box = torch.tensor([[20.0, 20, 36, 36]]) / 64
    boxes = Boxes(
        torch.tensor([1]), box_convert(box, "xyxy", "cxcywh"), torch.tensor([[0.1, 0.8]])
    )
    targets, target_xyxy = assign_boxes(boxes, scores, xyxy, centers, [8, 16], 64)
    assert targets[0].abs().sum() == 0
    best = targets[1, :, 1].argmax()
    assert centers[best].tolist() == [28.0, 28.0]
    assert targets[1, best].tolist() == pytest.approx([0.1, 0.8])
    assert target_xyxy[1, best].tolist() == pytest.approx([20.0, 20, 36, 36])
    far = (centers - 28).abs().amax(-1) > 16
    assert targets[1, far].abs().sum() == 0
    nothing = Boxes(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4), torch.zeros(0, 2))
    assert assign_boxes(nothing, scores, xyxy, centers, [8, 16], 64)[0].abs().sum() == 0
