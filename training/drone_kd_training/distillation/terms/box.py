# SPDX-License-Identifier: AGPL-3.0-or-later
"""Distillation of boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drone_kd_training.distillation.terms.base import Term

if TYPE_CHECKING:
    from torch import Tensor

    from drone_kd_training.distillation.comparison import Comparison


class BoxTerm(Term["Comparison"]):
    """Box distributions, or decoded boxes where the distributions cannot be compared."""

    help = "box distributions, or decoded boxes"
    paper = "LD, arXiv:2102.12252"
    needs_levels = False

    def compute(self, comparison: Comparison) -> dict[str, Tensor]:
        """Return ``kd_dfl_loss`` (distributions) or ``kd_box_loss`` (decoded boxes)."""
        name, loss = comparison.box_loss()
        return {f"kd_{name}_loss": loss}
