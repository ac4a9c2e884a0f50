# SPDX-License-Identifier: AGPL-3.0-or-later
"""Predictions of student and teacher on one batch, brought to the same anchors and classes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import Detect

from drone_kd_training.distillation import heads, losses
from drone_kd_training.distillation.box_assignment import assign_boxes
from drone_kd_training.distillation.heads import take_levels
from drone_kd_training.distillation.levels import LevelMatch
from drone_kd_training.distillation.losses import BACKGROUND
from drone_kd_training.teachers.soft_labels import Boxes, distilled_classes

# (branch of the head, level) -> hidden features of the student.
Hidden = dict[tuple[str, int], Tensor]


@dataclass
class ModelPair:
    """What is fixed for a run: both heads, their common classes and levels.

    Attributes:
        teacher_head: None for a teacher that predicts boxes.
        student_classes: the student's class ids that both know, (C,) int64.
        teacher_classes: the same classes in the teacher's numbering, (C,) int64.
        adapters: layers that are trained with the student, by term or branch.
        hidden: the student's hidden features of the current batch.
    """

    student_head: Detect
    teacher_head: Detect | None
    student_classes: Tensor
    teacher_classes: Tensor
    levels: LevelMatch
    temperature: float
    beta: float
    adapters: nn.ModuleDict
    hidden: Hidden = field(default_factory=dict)

    def layers(self, name: str) -> nn.ModuleList:
        """Return the adapters of a term or branch, one per matched level."""
        return cast(nn.ModuleList, self.adapters[name])


class Comparison:
    """What every term sees: class logits of both models at the same anchors, and box losses.

    Attributes:
        student_logits: (B, N, C) over the common classes.
        teacher_logits: (B, N, C), without gradient.
        class_mask: (B, N, C) of 1 and 0: where class logits are compared; None: everywhere.
    """

    student_logits: Tensor
    teacher_logits: Tensor
    class_mask: Tensor | None = None

    def __init__(self, pair: ModelPair, student: dict) -> None:
        self.pair = pair
        self.student = student
        self.size = heads.input_size(student, pair.student_head)

    def box_loss(self) -> tuple[str, Tensor]:
        """Return what is compared, "dfl" (distributions) or "box" (decoded), and the loss."""
        raise NotImplementedError

    def keep_labels(self, wanted: Tensor) -> None:
        """Leave out where a label wants more than the teacher: (B, N, C) over all anchors.

        A teacher that does not know an object would push its labelled anchors down.
        """
        kept = (self.teacher_logits.sigmoid() >= self._compared(wanted)).to(wanted)
        self.class_mask = kept if self.class_mask is None else self.class_mask * kept

    def _compared(self, values: Tensor) -> Tensor:
        """Return the anchors and classes that are compared, of (B, N, C) values of the student."""
        return values[..., self.pair.student_classes]


class LevelComparison(Comparison):
    """Comparison with a Detect teacher, anchor by anchor on the matched levels."""

    def __init__(self, pair: ModelPair, student: dict, teacher: dict) -> None:
        super().__init__(pair, student)
        self.teacher = teacher
        student_logits = take_levels(student, "scores", pair.levels.student)
        self.student_logits = student_logits[..., pair.student_classes]
        teacher_logits = take_levels(teacher, "scores", pair.levels.teacher)
        self.teacher_logits = teacher_logits[..., pair.teacher_classes]

    def _compared(self, values: Tensor) -> Tensor:
        levels = take_levels(
            {**self.student, "wanted": values.transpose(1, 2)}, "wanted", self.pair.levels.student
        )
        return super()._compared(levels)

    @property
    def teacher_head(self) -> Detect:
        """The teacher's head."""
        assert self.pair.teacher_head is not None  # there are matched levels
        return self.pair.teacher_head

    @cached_property
    def confidence(self) -> Tensor:
        """The teacher's confidence per anchor, (B, N)."""
        return losses.teacher_confidence(self.teacher_logits)

    def teacher_level(self, level: int) -> tuple[Tensor, Tensor]:
        """Return logits (B, N, C) of the common classes and raw boxes of one teacher level."""
        logits = take_levels(self.teacher, "scores", [level])[..., self.pair.teacher_classes]
        return logits, take_levels(self.teacher, "boxes", [level])

    def box_loss(self) -> tuple[str, Tensor]:
        """Compare the student's boxes with the teacher's."""
        raw = take_levels(self.student, "boxes", self.pair.levels.student)
        return self.raw_box_loss(raw, self.pair.student_head)

    def raw_box_loss(self, raw: Tensor, head: Detect) -> tuple[str, Tensor]:
        """Compare raw boxes (B, N, 4R) in the format of ``head`` with the teacher's.

        They lie on the student's grids of the matched levels.
        """
        teacher_raw = take_levels(self.teacher, "boxes", self.pair.levels.teacher)
        bins = head.reg_max
        if bins == self.teacher_head.reg_max and bins > 1:
            student_bins, teacher_bins = (x.unflatten(-1, (4, bins)) for x in (raw, teacher_raw))
            return "dfl", losses.dfl_divergence(student_bins, teacher_bins, self.confidence)
        # Both in pixels of the student's image, on the same grid.
        grids = [self.student["feats"][i] for i in self.pair.levels.student]
        strides = self.pair.student_head.stride[self.pair.levels.student]
        xyxy = heads.decode_boxes(raw, head.reg_max, grids, strides)
        teacher_xyxy = heads.decode_boxes(teacher_raw, self.teacher_head.reg_max, grids, strides)
        return "box", losses.decoded_box(xyxy, teacher_xyxy, self.confidence, self.size)

    def through_teacher(self, branch: str) -> Tensor:
        """Run the student's hidden features through the rest of a branch of the teacher's head.

        The result is (B, N, channels) over the matched levels.
        """
        outputs = []
        for adapter, (i, j) in zip(self.pair.layers(branch), self.pair.levels.pairs, strict=True):
            rest = getattr(self.teacher_head, branch)[j][1:]
            hidden = self.pair.hidden.pop((branch, i)).float()
            outputs.append(rest(adapter(hidden)).flatten(2))
        return torch.cat(outputs, dim=-1).transpose(1, 2)


class BoxComparison(Comparison):
    """Comparison with a teacher's boxes, assigned to the student's anchors as labels are."""

    def __init__(
        self,
        pair: ModelPair,
        student: dict,
        boxes: Boxes,
        batch: dict,
        one_to_one: bool = False,
    ) -> None:
        """Assign the teacher's boxes, scores in its own classes.

        ``batch`` has ``areas`` where not every class is labelled in every frame; ``one_to_one``:
        see `assign_boxes`.
        """
        super().__init__(pair, student)
        head = pair.student_head
        self.student_logits = heads.all_levels(student, "scores")[..., pair.student_classes]
        self.student_xyxy = heads.decode_all_boxes(student, head)
        centers = heads.anchor_centers(student["feats"], head.stride)
        common = Boxes(boxes.image, boxes.cxcywh, boxes.scores[:, pair.teacher_classes])
        self.targets, self.target_xyxy = assign_boxes(
            common.without_duplicates(BACKGROUND),
            self.student_logits.detach().sigmoid(),
            self.student_xyxy.detach(),
            centers,
            [int(s) for s in head.stride],
            self.size,
            one_to_one,
        )
        self.teacher_logits = torch.logit(self.targets, eps=1e-4)
        if "areas" in batch:
            full = self.targets.new_zeros(*self.targets.shape[:2], head.nc)
            full[..., pair.student_classes] = self.targets
            mask = distilled_classes(batch, full, centers / self.size)
            self.class_mask = mask[..., pair.student_classes]

    def leave_to_labels(self, wanted: Tensor, labelled: Tensor) -> None:
        """Compare labelled classes only where a label wants an object, and not more than it.

        With one anchor per object, that of the teacher's box may be a neighbour of the label's:
        it would become a duplicate. ``wanted``, ``labelled``: (B, N, C) over all anchors.
        """
        here = self._compared(wanted * labelled)
        kept = (here > 0) & (self.targets >= here) | (self._compared(labelled) == 0)
        mask = kept.to(self.targets)
        self.class_mask = mask if self.class_mask is None else self.class_mask * mask

    def box_loss(self) -> tuple[str, Tensor]:
        """Compare decoded boxes at the anchors that got one of the teacher's."""
        confidence = self.targets.amax(-1)
        loss = losses.decoded_box(self.student_xyxy, self.target_xyxy, confidence, self.size)
        return "box", loss
