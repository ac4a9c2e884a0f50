# SPDX-License-Identifier: AGPL-3.0-or-later
"""How far the answers of two backends lie apart, on the same frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# The weaker half of the rows is left out: at the end of the list the smallest difference decides
# which anchors are on it at all.
SHARE = 0.5
# Up to this score a row does not say which class it is of: the next one may be as good as level.
UNTOLD = 0.001


@dataclass(frozen=True)
class Parity:
    """Differences of matched rows over ``frames`` frames: boxes in input pixels (the largest of
    the four coordinates), scores in [0, 1].
    """

    box_px: np.ndarray
    score: np.ndarray
    frames: int


def compare(first, second, frames: list[np.ndarray], least_score: float = 0.0) -> Parity:
    """Match the better rows of ``first`` with rows of ``second``, and take the differences.

    Args:
        first, second: backends of the same input size, batch and classes.
        frames: uint8 (H, W, 3) BGR of that size.
        least_score: rows of ``first`` below it are left out.

    Returns:
        One difference per row of ``first``; infinite where ``second`` has no row of that class
        (of any, for scores up to `UNTOLD`).
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
    """Of each row of ``a`` to the row of ``b`` that is most like it, of the same class if both
    scores are high enough to tell.
    """
    # Rows of equal score change places, so they are found again by what they say.
    box = np.abs(a[:, None, :4] - b[None, :, :4]).max(axis=2)
    score = np.abs(a[:, None, 4] - b[None, :, 4])
    told = np.maximum(a[:, None, 4], b[None, :, 4]) > UNTOLD
    other = told & (a[:, None, 5] != b[None, :, 5])
    cost = np.where(other, np.inf, box + 100 * score)
    partner = cost.argmin(axis=1)[:, None]
    missing = np.isinf(np.take_along_axis(cost, partner, axis=1)[:, 0])
    return tuple(
        np.where(missing, np.inf, np.take_along_axis(d, partner, axis=1)[:, 0])
        for d in (box, score)
    )
