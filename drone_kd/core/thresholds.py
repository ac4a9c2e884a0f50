"""Score thresholds per class, as the node's parameter and the command line give them."""

from __future__ import annotations

from collections.abc import Iterable


def parse_thresholds(entries: Iterable[str]) -> dict[str, float]:
    """Read entries such as "car=0.4" into class name -> threshold; empty entries are skipped.

    ValueError: an entry has another form, or its threshold is not within 0 to 1.
    """
    thresholds = {}
    for entry in filter(None, entries):
        name, _, text = entry.rpartition("=")
        try:
            threshold = float(text)
        except ValueError:
            threshold = -1.0
        if not name.strip() or not 0 <= threshold <= 1:
            raise ValueError(f"expected NAME=THRESHOLD with 0 to 1, got {entry!r}")
        thresholds[name.strip()] = threshold
    return thresholds
