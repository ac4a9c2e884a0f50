# SPDX-License-Identifier: AGPL-3.0-or-later
"""Distillation of features: those that enter the head, and those inside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drone_kd_training.distillation.terms.base import Term

if TYPE_CHECKING:
    from torch import Tensor, nn
    from ultralytics.nn.modules.head import Detect

    from drone_kd_training.distillation.aligned_predictions import Hidden, LevelComparison
    from drone_kd_training.distillation.levels import LevelMatch

# The box and the class branch of a Detect head.
BOX, CLASS = "cv2", "cv3"


class FeatureTerm(Term):
    """The features that enter both heads, weighted by the teacher's confidence."""

    help = "features that enter the head, where the teacher sees objects"
    paper = "PKD, arXiv:2207.02039"

    def compute(self, comparison: LevelComparison) -> dict[str, Tensor]:
        """Return ``kd_feature_loss``, the mean over the matched levels."""
        from drone_kd_training.distillation import losses  # deferred: it imports torch

        pair = comparison.pair
        grids = [comparison.student["feats"][i].shape[-2:] for i in pair.levels.student]
        weights = comparison.confidence.split([h * w for h, w in grids], dim=-1)
        terms = [
            losses.feature_correlation(
                adapter(comparison.student["feats"][i]),
                comparison.teacher["feats"][j],
                weight.unflatten(-1, grid),
            )
            for adapter, (i, j), weight, grid in zip(
                pair.layers("feature"), pair.levels.pairs, weights, grids, strict=True
            )
        ]
        return {"kd_feature_loss": sum(terms[1:], terms[0]) / len(terms)}

    def make_adapters(
        self, student_head: Detect, teacher_head: Detect, levels: LevelMatch
    ) -> dict[str, nn.ModuleList]:
        """Return a 1x1 convolution from the student's to the teacher's width per level."""
        from torch import nn

        def width(head: Detect, level: int) -> int:
            modules = head.cv2[level].modules()
            return next(m for m in modules if isinstance(m, nn.Conv2d)).in_channels

        layers = (
            nn.Conv2d(width(student_head, i), width(teacher_head, j), 1) for i, j in levels.pairs
        )
        return {"feature": nn.ModuleList(layers)}


class CrossHeadTerm(Term):
    """The student's hidden features, seen through the rest of the teacher's head."""

    help = "student features through the teacher's head"
    paper = "CrossKD, arXiv:2306.11369"

    def compute(self, comparison: LevelComparison) -> dict[str, Tensor]:
        """Return ``kd_cross_cls_loss`` and ``kd_cross_dfl_loss`` or ``kd_cross_box_loss``."""
        from drone_kd_training.distillation import losses  # deferred: it imports torch

        pair = comparison.pair
        logits = comparison.through_teacher(CLASS)[..., pair.teacher_classes]
        class_loss = losses.class_response_sigmoid(
            logits, comparison.teacher_logits, pair.temperature, comparison.class_mask, pair.beta
        )
        raw = comparison.through_teacher(BOX)
        name, box_loss = comparison.raw_box_loss(raw, comparison.teacher_head)
        return {"kd_cross_cls_loss": class_loss, f"kd_cross_{name}_loss": box_loss}

    def make_adapters(
        self, student_head: Detect, teacher_head: Detect, levels: LevelMatch
    ) -> dict[str, nn.ModuleList]:
        """Return a 1x1 convolution per level and branch, none where the widths are equal."""
        from torch import nn

        def adapter(student: nn.Conv2d, teacher: nn.Conv2d) -> nn.Module:
            widths = student.in_channels, teacher.in_channels
            return nn.Identity() if widths[0] == widths[1] else nn.Conv2d(*widths, 1)

        return {
            branch: nn.ModuleList(
                adapter(getattr(student_head, branch)[i][-1], getattr(teacher_head, branch)[j][-1])
                for i, j in levels.pairs
            )
            for branch in (BOX, CLASS)
        }

    def watch(self, student_head: Detect, levels: LevelMatch, hidden: Hidden) -> None:
        """Keep what leaves the first layer of each branch of the student's head."""

        def keep(branch: str, level: int):
            def hook(module: nn.Module, inputs, output: Tensor) -> None:
                if module.training:  # not while a validation runs the student
                    hidden[branch, level] = output

            return hook

        for branch in (BOX, CLASS):
            for level in levels.student:
                getattr(student_head, branch)[level][0].register_forward_hook(keep(branch, level))
