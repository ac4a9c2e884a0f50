"""Matching of predictions with ground truth: of their own frame, and of later moments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from drone_kd.core.boxes import iou
from drone_kd.simulation.scoring.flight_record import Leg, Predictions, Truth
from drone_kd.simulation.scoring.tracks import TrueTracks

FOUND_IOU = 0.5
# A larger difference between stamps and the recorder's time means different clocks.
_OTHER_CLOCK_NS = 5 * 10**8


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
    """Pair the ground truth of every frame with predictions, in the order of time.

    `latest` is the pairing of Li, Wang and Ramanan, "Towards Streaming Perception" (ECCV 2020):
    predictions count from their arrival until the next ones arrive.
    """
    return _paired(leg, ((stamp, leg.truths[stamp]) for stamp in sorted(leg.truths)))


def grid_moments(leg: Leg, tracks: TrueTracks) -> Iterator[Moment]:
    """Pair ground truth with predictions as `moments` does, at the times of `tracks.grid()`."""
    times = ((at, tracks.at(at)) for at in tracks.grid())
    return _paired(leg, ((at, truth) for at, truth in times if truth is not None))


def _paired(leg: Leg, truths: Iterable[tuple[int, Truth]]) -> Iterator[Moment]:
    offset = clock_offset_ns(leg)
    own = {p.stamp_ns: p for p in leg.predictions}
    coming = iter(sorted(leg.predictions, key=lambda p: p.at_ns))
    following, latest = next(coming, None), None
    for stamp, truth in truths:
        fresh = False
        while following is not None and following.at_ns - offset <= stamp:
            latest, following, fresh = following, next(coming, None), True
        yield Moment(stamp, truth, own.get(stamp), latest, fresh)


class Match(NamedTuple):
    """Matched boxes; ignored objects are never found, and boxes on them count as nothing."""

    found: np.ndarray  # bool (objects,)
    hit: np.ndarray  # bool (predictions,): on an object of its class
    false_alarm: np.ndarray  # bool (predictions,): on nothing, or on an object found already
    wrong_class: np.ndarray  # bool (predictions,): on an object of another class


def match(truth: Truth, predictions: Predictions, confidence: float) -> Match:
    """Match boxes class by class, best scores first, each with the best box that is left.

    Predictions with a score below `confidence` are ignored; so are unmatched ones that overlap an
    ignored object, or have half of their area in it.
    """
    found = np.zeros(len(truth.names), bool)
    confident = predictions.scores >= confidence
    hit, wrong_class = np.zeros((2, len(confident)), bool)
    if not len(found) or not confident.any():
        return Match(found, hit, confident, wrong_class)
    overlap = iou(predictions.xyxy, truth.xyxy)
    same = np.array(predictions.names)[:, None] == np.array(truth.names)
    wanted = np.where(same & ~truth.ignored, overlap, 0)
    for k in np.argsort(-predictions.scores, kind="stable"):
        if not confident[k]:
            continue
        free = np.where(found, 0.0, wanted[k])
        best = int(free.argmax())
        if free[best] >= FOUND_IOU:
            found[best] = hit[k] = True
    rest = confident & ~hit
    if truth.ignored.any():
        regions = truth.xyxy[truth.ignored]
        on = (overlap[:, truth.ignored] >= FOUND_IOU).any(1)
        rest &= ~on & ~(_share_within(predictions.xyxy, regions) >= FOUND_IOU).any(1)
    wrong_class = rest & (overlap[:, ~truth.ignored] >= FOUND_IOU).any(1)
    wrong_class &= ~(wanted >= FOUND_IOU).any(1)
    return Match(found, hit, rest & ~wrong_class, wrong_class)


def _share_within(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Return which share of each box (N, 4) is in each region (K, 4): (N, K)."""
    low = np.maximum(boxes[:, None, :2], regions[:, :2])
    high = np.minimum(boxes[:, None, 2:], regions[:, 2:])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return np.asarray((high - low).clip(0).prod(2) / np.maximum(area, 1e-9)[:, None])
