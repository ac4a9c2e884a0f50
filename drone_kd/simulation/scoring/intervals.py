"""Means over flights with 95 % intervals: a flight is one sample, however many frames it has."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from drone_kd.simulation.scoring.text import FIGURES, WAYS

# 97.5 % quantiles of Student's t, for 1 and more degrees of freedom.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the half width of its 95 % interval by Student's t.

    The width is None for a single value.
    """
    n = len(values)
    if n < 2:
        return float(np.mean(values)), None
    degrees = n - 1
    t = _T[degrees - 1] if degrees <= len(_T) else 1.96 + 2.5 / degrees  # within 0.02
    return float(np.mean(values)), t * float(np.std(values, ddof=1)) / math.sqrt(n)


def flights_summary(scores: Sequence[dict]) -> str:
    """Return the scores of several flights as lines: mean and half width of the interval."""
    lines = [f"{'mean over ' + str(len(scores)) + ' flights':<26}"]
    lines[0] += "".join(f"{way:>20}" for way in WAYS)
    for name, key, scale in FIGURES:
        cells = []
        for way in WAYS:
            values = [scale * s[way][key] for s in scores if s[way][key] is not None]
            cells.append(_cell(values, len(scores)))
        lines.append(f"{name:<26}" + "".join(f"{cell:>20}" for cell in cells))
    lines.append("± half of the 95 % interval over flights (Student's t)")
    return "\n".join(lines)


def _cell(values: list[float], flights: int) -> str:
    if not values:
        return "-"
    mean, half = mean_interval(values)
    text = f"{mean:.1f}" if half is None else f"{mean:.1f} ± {half:.1f}"
    return text if len(values) == flights else f"{text} (of {len(values)})"
