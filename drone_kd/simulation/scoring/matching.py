"""Matching of predictions with ground truth: of their own frame, and of later moments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from drone_kd.core.boxes import iou
from drone_kd.simulation.scoring.flight_record import Leg, Predictions, Truth

FOUND_IOU = 0.5
# A larger difference between stamps and the recorder's time means different clocks.
_OTHER_CLOCK_NS = 10**9


@dataclass(frozen=True, eq=False)
class Moment:
    """One moment of ground truth with the predictions to compare it with."""

    stamp_ns: int  # of the ground truth
    truth: Truth
    own: Predictions | None  # for the frame of this moment
    latest: Predictions | None  # the newest that had arrived at this moment
    fresh: bool  # `latest` arrived since the previous moment


def clock_offset_ns(leg: Leg) -> int:
    """Return what to add to a leg's stamps to get the recorder's time; 0 if the clocks agree.

    Ground truth is published at its own moment, so the fastest message gives the offset.
    """
    delay = min(at - stamp for stamp, at in leg.truths_at.items())
    return 0 if abs(delay) < _OTHER_CLOCK_NS else delay


def latencies_ms(legs: list[Leg]) -> list[float]:
    """Return the time from each frame's stamp to the arrival of its predictions, in ms."""
    return [
        (p.at_ns - offset - p.stamp_ns) / 1e6
        for leg in legs
        for offset in [clock_offset_ns(leg)]
        for p in leg.predictions
    ]


def moments(leg: Leg) -> Iterator[Moment]:
    """Pair every moment of ground truth with predictions, in the order of time.

    `latest` is the pairing of Li, Wang and Ramanan, "Towards Streaming Perception" (ECCV 2020):
    predictions count from their arrival until the next ones arrive.
    """
    offset = clock_offset_ns(leg)
    own = {p.stamp_ns: p for p in leg.predictions}
    coming = iter(sorted(leg.predictions, key=lambda p: p.at_ns))
    following, latest = next(coming, None), None
    for stamp in sorted(leg.truths):
        fresh = False
        while following is not None and following.at_ns - offset <= stamp:
            latest, following, fresh = following, next(coming, None), True
        yield Moment(stamp, leg.truths[stamp], own.get(stamp), latest, fresh)


def match(
    truth: Truth, predictions: Predictions, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Match boxes class by class, best scores first, each with the best box that is left.

    Predictions with a score below `confidence` are ignored. Returns which objects are found, bool
    (objects,), and which predictions are false alarms, bool (predictions,).
    """
    found = np.zeros(len(truth.names), bool)
    confident = predictions.scores >= confidence
    false_alarm = confident.copy()
    if not len(found) or not confident.any():
        return found, false_alarm
    overlap = iou(predictions.xyxy, truth.xyxy)
    overlap[np.array(predictions.names)[:, None] != np.array(truth.names)] = 0
    for k in np.argsort(-predictions.scores, kind="stable"):
        if not confident[k]:
            continue
        free = np.where(found, 0.0, overlap[k])
        best = int(free.argmax())
        if free[best] >= FOUND_IOU:
            found[best], false_alarm[k] = True, False
    return found, false_alarm
