# SPDX-License-Identifier: AGPL-3.0-or-later
"""Label assignment by the teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drone_kd_training.distillation.terms.base import Term

if TYPE_CHECKING:
    from torch import Tensor

    from drone_kd_training.distillation.aligned_predictions import Comparison, LevelComparison


class AssignmentTerm(Term):
    """Labels are assigned to the anchors that the teacher predicts best.

    This adds no loss: it moves the targets of the detection loss. A teacher that predicts boxes
    alone leaves them where they are.
    """

    help = "no loss: labels go to the anchors that the teacher predicts best"
    paper = "LAD, arXiv:2108.10520"
    needs_levels = False

    def compute(self, comparison: Comparison) -> dict[str, Tensor]:
        """Return no losses."""
        return {}

    def assignment(self, comparison: LevelComparison) -> tuple[Tensor, Tensor]:
        """Return, at each anchor, the predictions of the more confident model.

        So a teacher that does not know a class or a domain changes nothing.
        """
        from drone_kd_training.distillation.heads import all_levels, decode_all_boxes, decode_boxes

        pair, student = comparison.pair, comparison.student
        head = pair.student_head
        scores = all_levels(student, "scores").detach().sigmoid()
        xyxy = decode_all_boxes({**student, "boxes": student["boxes"].detach()}, head)
        teacher_levels = dict(pair.levels.pairs)
        first = 0
        for level, grid in enumerate(student["feats"]):
            anchors = slice(first, first + grid.shape[-2] * grid.shape[-1])
            first = anchors.stop
            if level not in teacher_levels:
                continue
            logits, raw = comparison.teacher_level(teacher_levels[level])
            merged = scores[:, anchors].clone()
            merged[..., pair.student_classes] = logits.sigmoid()
            strides = head.stride[level : level + 1]
            boxes = decode_boxes(raw, comparison.teacher_head.reg_max, [grid], strides)
            better = logits.sigmoid().amax(-1) >= scores[:, anchors].amax(-1)
            scores[:, anchors][better] = merged[better]
            xyxy[:, anchors][better] = boxes[better]
        return scores, xyxy
