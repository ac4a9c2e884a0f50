# SPDX-License-Identifier: AGPL-3.0-or-later
"""Differences between the outputs of two backends on the same frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drone_kd.backends import Backend
from drone_kd.core.row_differences import row_differences

# Only the better half of the rows is compared: at the end of the list the smallest difference
# decides which anchors are in it.
SHARE = 0.5


@dataclass(frozen=True)
class Parity:
    """Difference per matched row: the largest of a box's edges in input pixels, the score's."""

    box_px: np.ndarray
    score: np.ndarray
    frames: int


def compare(
    first: Backend, second: Backend, frames: list[np.ndarray], least_score: float = 0.0
) -> Parity:
    """Match the better rows of ``first`` with rows of ``second``, and take the differences.

    Both backends have the same input size, batch and classes, and ``frames`` are uint8 (H, W, 3)
    BGR of that size. Rows of ``first`` with a score below ``least_score`` are left out. See
    `row_differences`.
    """
    box, score = [np.zeros(0, np.float32)], [np.zeros(0, np.float32)]
    for frame in frames:
        batch = np.broadcast_to(frame, (first.spec.batch, *frame.shape))
        a, b = (backend.infer(batch)[0] for backend in (first, second))
        a = a[: max(1, int(len(a) * SHARE))]
        differences = row_differences(a[a[:, 4] >= least_score], b)
        box.append(differences[0])
        score.append(differences[1])
    return Parity(np.concatenate(box), np.concatenate(score), len(frames))
