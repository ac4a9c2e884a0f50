# SPDX-License-Identifier: AGPL-3.0-or-later
"""Distillation of the features that enter the head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drone_kd_training.distillation.terms.base import Term

if TYPE_CHECKING:
    from torch import Tensor, nn
    from ultralytics.nn.modules.head import Detect

    from drone_kd_training.distillation.aligned_predictions import LevelComparison
    from drone_kd_training.distillation.levels import LevelMatch


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
