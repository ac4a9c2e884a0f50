"""Time from first visible to first detected, with objects that were never detected."""

from __future__ import annotations

import numpy as np


def kaplan_meier(waits_s: list[float], detected: list[bool]) -> dict[str, float | None]:
    """Return the times within which half, 95 % and 99 % of the objects are detected.

    The product-limit estimate of Kaplan and Meier (1958). `waits_s` are seconds since the object
    was first visible: until it was `detected`, or until it was last seen. None: the estimate does
    not reach that share, e.g. since too many objects left undetected.
    """
    waits, events = np.array(waits_s, float), np.array(detected, bool)
    times = np.unique(waits[events])
    at_risk = (waits >= times[:, None]).sum(1)
    ended = ((waits == times[:, None]) & events).sum(1)
    undetected = np.cumprod(1 - ended / np.maximum(at_risk, 1))
    quantiles: dict[str, float | None] = {}
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        reached = np.flatnonzero(undetected <= 1 - share + 1e-9)
        quantiles[name] = round(float(times[reached[0]]), 3) if len(reached) else None
    return quantiles
