# SPDX-License-Identifier: AGPL-3.0-or-later
"""Distillation of what the head predicts: class logits and boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drone_kd_training.distillation.terms.base import Term

if TYPE_CHECKING:
    from torch import Tensor

    from drone_kd_training.distillation.aligned_predictions import Comparison, LevelComparison


class ClassTerm(Term):
    """Class probabilities, each class by itself (sigmoid)."""

    help = "class probabilities, per class"
    paper = "BCKD, arXiv:2308.14286"
    needs_levels = False

    def compute(self, comparison: Comparison) -> dict[str, Tensor]:
        """Return ``kd_cls_loss``."""
        from drone_kd_training.distillation import losses  # deferred: it imports torch

        loss = losses.class_response_sigmoid(
            comparison.student_logits,
            comparison.teacher_logits,
            comparison.pair.temperature,
            comparison.class_mask,
            comparison.pair.beta,
        )
        return {"kd_cls_loss": loss}


class SoftmaxTerm(Term):
    """The classical form: a softmax over the classes."""

    help = "class probabilities, over the classes"
    paper = "Hinton, arXiv:1503.02531"

    def compute(self, comparison: LevelComparison) -> dict[str, Tensor]:
        """Return ``kd_softmax_loss``."""
        from drone_kd_training.distillation import losses  # deferred: it imports torch

        loss = losses.class_response_softmax(
            comparison.student_logits, comparison.teacher_logits, comparison.pair.temperature
        )
        return {"kd_softmax_loss": loss}


class BoxTerm(Term):
    """Box distributions, or decoded boxes where the distributions cannot be compared."""

    help = "box distributions, or decoded boxes"
    paper = "LD, arXiv:2102.12252"
    needs_levels = False

    def compute(self, comparison: Comparison) -> dict[str, Tensor]:
        """Return ``kd_dfl_loss`` (distributions) or ``kd_box_loss`` (decoded boxes)."""
        name, loss = comparison.box_loss()
        return {f"kd_{name}_loss": loss}
