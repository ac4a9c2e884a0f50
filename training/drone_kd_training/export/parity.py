# SPDX-License-Identifier: AGPL-3.0-or-later
"""Differences between the outputs of two backends on the same frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drone_kd.backends import Backend

# Only the better half of the rows is compared: at the end of the list the smallest difference
# decides which anchors are in it.
SHARE = 0.5
# Up to this score the class of a row is not compared: the runner-up may score the same.
MIN_CLASS_SCORE = 0.001
# Pixels of box difference that count as much as a score difference of 1 when rows are matched.
_PX_PER_SCORE = 100


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
    BGR of that size. Rows of ``first`` with a score below ``least_score`` are left out. A
    difference is infinite where ``second`` has no row of that class (of any class, for scores up
    to `MIN_CLASS_SCORE`).
    """
    box, score = [np.zeros(0, np.float32)], [np.zeros(0, np.float32)]
    for frame in frames:
        batch = np.broadcast_to(frame, (first.spec.batch, *frame.shape))
        a, b = (backend.infer(batch)[0] for backend in (first, second))
        a = a[: max(1, int(len(a) * SHARE))]
        differences = _differences(a[a[:, 4] >= least_score], b)
        box.append(differences[0])
        score.append(differences[1])
    return Parity(np.concatenate(box), np.concatenate(score), len(frames))


def _differences(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return box and score difference of each row of ``a`` to the most similar row of ``b``."""
    # Matched by content, because rows of equal score change places.
    box = np.abs(a[:, None, :4] - b[None, :, :4]).max(axis=2)
    score = np.abs(a[:, None, 4] - b[None, :, 4])
    has_class = np.maximum(a[:, None, 4], b[None, :, 4]) > MIN_CLASS_SCORE
    other_class = has_class & (a[:, None, 5] != b[None, :, 5])
    cost = np.where(other_class, np.inf, box + _PX_PER_SCORE * score)
    rows, partner = np.arange(len(a)), cost.argmin(axis=1)
    missing = ~np.isfinite(cost[rows, partner])  # also where an output is not a number
    box, score = (np.where(missing, np.inf, d[rows, partner]) for d in (box, score))
    return box, score
