# SPDX-License-Identifier: AGPL-3.0-or-later
"""The interface of a distillation term."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from ultralytics.nn.modules.head import Detect

    from drone_kd_training.distillation.aligned_predictions import Hidden, LevelComparison
    from drone_kd_training.distillation.levels import LevelMatch


class Term:
    """One distillation term; without state, because several criteria share it.

    Attributes:
        help: one line for ``--help``: what the term compares.
        paper: the paper it follows.
        needs_levels: whether it compares anchors or features, which needs a teacher with a Detect
            head and a level in common with the student.
    """

    help: str
    paper: str
    needs_levels: bool = True

    def compute(self, comparison: Any) -> dict[str, Tensor]:
        """Return the losses of one batch: column of results.csv -> scalar.

        It gets a `LevelComparison` if it ``needs_levels``, otherwise any `Comparison`.
        """
        raise NotImplementedError

    def assignment(self, comparison: LevelComparison) -> tuple[Tensor, Tensor] | None:
        """Return the predictions that decide which anchor gets which label.

        They are probabilities (B, N, C) and boxes (B, N, 4), xyxy in pixels, over all levels of
        the student; None leaves the decision to the student.
        """
        return None

    def make_adapters(
        self, student_head: Detect, teacher_head: Detect, levels: LevelMatch
    ) -> dict[str, nn.ModuleList]:
        """Return the layers that the term trains with the student, one per matched level."""
        return {}

    def watch(self, student_head: Detect, levels: LevelMatch, hidden: Hidden) -> None:
        """Register hooks that put the student's hidden features into ``hidden``."""
