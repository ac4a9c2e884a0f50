# SPDX-License-Identifier: AGPL-3.0-or-later
"""Outcome of a gate: a figure with its interval, compared with a limit.

A gate *holds* if all of the 95 % interval is within the limit, *fails* if all of it is above, and
else there is *not enough data*. Intervals come from a bootstrap over images (Efron, "Bootstrap
methods", Annals of Statistics 1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

HOLDS, FAILS, NOT_ENOUGH = "holds", "fails", "not enough data"
Z = 1.96
# Objects of one image are not independent: it counts for at most this many.
PER_IMAGE = 10
# More than anybody labels: the figure is too close to its limit.
MAX_MISSING = 10_000

# Figure of weighted images: takes their weights (N, images), returns (N,); NaN without an object.
Figure = Callable[[np.ndarray], np.ndarray]


def outcome(gate: dict[str, float]) -> str:
    """Return HOLDS, FAILS or NOT_ENOUGH; a gate without "missing" is exact."""
    if gate.get("missing"):
        return NOT_ENOUGH
    return FAILS if gate["measured"] > gate["limit"] else HOLDS


def judge(
    figure: Figure,
    weights: np.ndarray,
    limit: float,
    count: int,
    images: int,
    scale: float = 100,
    share: bool = True,
) -> dict[str, float]:
    """Return the gate of a figure.

    The standard error is that of the bootstrap, and at least that of as many independent objects:
    few ones that agree prove little.

    Args:
        figure: mean over ``count`` objects in ``images`` images.
        weights: resampled images, see `resample_blocks`.
        limit: largest value of the figure.
        scale: factor for the gate, 100 for percent.
        share: False for a mean of values that are small for most objects.
    """
    measured = error = 0.0
    if count:
        measured = float(figure(np.ones((1, weights.shape[1]), np.int64))[0])
        error = float(np.nanstd(figure(weights)))
    independent = max(min(count, PER_IMAGE * images), 1)
    rate = min(0.5, max(limit, abs(measured)))
    deviation = math.sqrt(rate * (1 - rate)) if share else 5 * limit
    half = Z * max(error, deviation / math.sqrt(independent))
    missing = 0.0
    if not count or measured - half <= limit < measured + half:
        needed = independent * (half / max(abs(limit - measured), 1e-9)) ** 2
        missing = min(max(math.ceil(needed) - (independent if count else 0), 1), MAX_MISSING)
    figures = {"measured": measured, "limit": limit}
    if count:
        figures |= {"low": measured - half, "high": measured + half}
    gate = {key: round(scale * value, 6) for key, value in figures.items()}
    return gate | {"count": count, "missing": missing}
