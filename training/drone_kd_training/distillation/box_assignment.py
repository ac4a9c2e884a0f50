# SPDX-License-Identifier: AGPL-3.0-or-later
"""Assignment of labels and of a teacher's boxes to the student's anchors."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert
from ultralytics.utils.tal import TaskAlignedAssigner

from drone_kd_training.teachers.soft_labels import Boxes


def assign_boxes(
    boxes: Boxes,
    scores: Tensor,
    xyxy: Tensor,
    centers: Tensor,
    strides: list[int],
    size: float,
    one_to_one: bool = False,
) -> tuple[Tensor, Tensor]:
    """Assign a teacher's boxes to the student's anchors, as labels are assigned.

    Task-aligned assignment (TOOD, Feng et al. ICCV 2021, arXiv:2108.07755), as the detection loss
    uses it. The probabilities of a box are scaled by how well its anchor is aligned.

    Args:
        boxes: the teacher's, scores in the C classes that are compared.
        scores: the student's probabilities (B, N, C).
        xyxy: the student's boxes (B, N, 4), pixels.
        centers: of the anchors (N, 2), pixels.
        strides: of the student's levels.
        size: width of the square input, pixels.
        one_to_one: a box goes to one anchor, as in YOLO26's head that needs no NMS.

    Returns:
        Target probabilities (B, N, C), 0 where nothing was assigned, and boxes (B, N, 4).
    """
    images, classes = scores.shape[0], scores.shape[-1]
    most = int(boxes.image.bincount(minlength=images).max()) if len(boxes.image) else 0
    if most == 0:
        return torch.zeros_like(scores), torch.zeros_like(xyxy)
    padded_xyxy = xyxy.new_zeros(images, most, 4)
    padded_scores = scores.new_zeros(images, most, classes)
    valid = scores.new_zeros(images, most, 1)
    for image in range(images):
        own = boxes[boxes.image == image]
        n = len(own.image)
        padded_xyxy[image, :n] = box_convert(own.cxcywh, "cxcywh", "xyxy").to(padded_xyxy) * size
        padded_scores[image, :n] = own.scores.to(padded_scores)
        valid[image, :n] = 1
    # The numbers of candidates are Ultralytics' own, for each kind of head.
    candidates = {"topk": 7, "topk2": 1} if one_to_one else {"topk": 10}
    assigner = TaskAlignedAssigner(
        num_classes=classes, alpha=0.5, beta=6.0, stride=strides, **candidates
    )
    _, target_xyxy, alignment, foreground, index = assigner(
        scores, xyxy, centers, padded_scores.argmax(-1, keepdim=True), padded_xyxy, valid
    )
    targets = padded_scores.gather(1, index[..., None].expand(-1, -1, classes))
    weight = alignment.amax(dim=-1, keepdim=True) * foreground[..., None]
    return targets * weight, target_xyxy


class GuidedAssigner(nn.Module):
    """Ultralytics' assigner, perhaps with given predictions in the place of the student's.

    Attributes:
        predictions: probabilities (B, N, C) and boxes (B, N, 4) in pixels; None: the student's.
        targets: the probabilities (B, N, C) that the last call wanted.
    """

    def __init__(self, assigner: nn.Module, predictions: tuple[Tensor, Tensor] | None) -> None:
        super().__init__()
        self.assigner, self.predictions = assigner, predictions
        self.targets: Tensor | None = None

    def forward(self, scores: Tensor, xyxy: Tensor, *rest, **options):
        """Assign the labels; called like the assigner."""
        found = self.assigner(*(self.predictions or (scores, xyxy)), *rest, **options)
        self.targets = found[2]
        return found


class MaskedBCE(nn.Module):
    """BCEWithLogitsLoss(reduction="none") of (B, N, C) logits, times ``mask`` (B, N, C).

    At an anchor with an object every class counts: a car is not a person.
    """

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the masked loss (B, N, C)."""
        loss = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return loss * self.mask.maximum((target.amax(dim=-1, keepdim=True) > 0).to(loss))


def guided_criterion(
    detection, assignment: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None
):
    """Return Ultralytics' detection criterion with a `GuidedAssigner`, and with a class mask.

    The given criterion stays as it is, since it is what checkpoints hold.

    Args:
        detection: a criterion of one branch, or of two (YOLO26).
        assignment: scores (B, N, C) and xyxy (B, N, 4) that decide which anchor gets which label;
            for two branches that of one-to-many. None: the student's own.
        mask: (B, N, C) of 1 and 0: where "no object of this class" is learned. None: everywhere.
    """
    guided = copy(detection)
    if hasattr(detection, "one2many"):
        guided.one2many = guided_criterion(detection.one2many, assignment, mask)
        guided.one2one = guided_criterion(detection.one2one, None, mask)
        return guided
    guided.assigner = GuidedAssigner(detection.assigner, assignment)
    if mask is not None:
        guided.bce = MaskedBCE(mask)
    return guided
