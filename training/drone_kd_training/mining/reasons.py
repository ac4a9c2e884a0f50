# SPDX-License-Identifier: AGPL-3.0-or-later
"""Mining reasons: why a frame is worth a label.

To add one, add it to ``REASONS`` and measure it in `measure`, or over all scenes in
`selection.add_scenes`. Shares, candidates and ``mined.csv`` follow from the table.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from drone_kd.core.detections import Detections


class Reason(NamedTuple):
    """``share`` of the training frames by default; ``in_segment``: see `measure`."""

    share: float
    in_segment: bool = True


REASONS = {
    "disagreement": Reason(0.5),  # of student and teacher
    "uncertainty": Reason(0.2),  # the student's predictions change between neighbouring frames
    "novelty": Reason(0.2, in_segment=False),  # distance to the nearest other scenes
    "random": Reason(0.1),  # may show what both models miss
}
SHARES = {name: reason.share for name, reason in REASONS.items()}


@dataclass(frozen=True)
class ScoredFrame:
    """A frame after inference, without its pixels; see `Frame` and `FrameFeatures`.

    ``size``: (width, height) in pixels. ``student``: the student's predictions.
    """

    number: int
    stamp_s: float
    block: int
    size: tuple[int, int]
    embedding: np.ndarray
    shift: tuple[float, float] | None
    student: Detections
    disagreement: float


def measure(scored: list[ScoredFrame], i: int, name: str) -> dict[str, float]:
    """Return how much frame ``i`` of a segment is worth, 0 to 1, by each reason in the segment."""
    from drone_kd_training.mining.hardness import flicker  # deferred: --help needs no OpenCV

    changes = [
        flicker(a.student, b.student, b.shift, b.size)
        for a, b in pairwise(scored[max(i - 1, 0) : i + 2])
        if b.shift is not None
    ]
    return {
        "disagreement": scored[i].disagreement,
        "uncertainty": float(np.mean(changes)) if changes else 0.0,
        # Random, but equal in every run and on every machine.
        "random": int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48,
    }
