"""Differences between output rows of two runs of a model, matched by content."""

from __future__ import annotations

import numpy as np

from drone_kd.core.arrays import Float32Array

# Up to this score the class of a row is not compared: the runner-up may score the same.
MIN_CLASS_SCORE = 0.001
# Pixels of box difference that count as much as a score difference of 1 when rows are matched.
_PX_PER_SCORE = 100


def row_differences(a: Float32Array, b: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Return box and score difference of each row of `a` to the most similar row of `b`.

    Rows are those of `ModelSpec`, (N, 6) and (M ≥ 1, 6). The box difference is the largest of the
    four edges, in network pixels. Both are infinite where `b` has no row of that class (of any
    class, for scores up to `MIN_CLASS_SCORE`), and where it holds NaN.
    """
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
