"""Recall, false alarms and time to the first detection over the moments of a flight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from drone_kd.metrics import SIZES
from drone_kd.simulation.scoring.first_detection import kaplan_meier
from drone_kd.simulation.scoring.flight_record import Predictions
from drone_kd.simulation.scoring.matching import Match, Moment, match
from drone_kd.simulation.scoring.tracks import TrueTracks


@dataclass(frozen=True)
class TimedLeg:
    """The moments of a leg, in the order of time, and its tracks."""

    moments: list[Moment]
    tracks: TrueTracks


class Counts:
    """Counts over the moments of a flight, in the order of time.

    A box on an object of another class is a wrong class; one that matches an object at its own
    stamp, but none now, is stale. Neither is a false alarm.

    `seconds` is the length of the flight.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._hits, self._areas = [np.zeros(0, bool)], [np.zeros(0, np.float32)]
        self._false_alarms = self._wrong_class = 0
        self._stale: list[int] = []
        # Of each track in ns: first and last time visible, and first time found.
        self._seen: dict[tuple[int, str], tuple[int, int]] = {}
        self._found: dict[tuple[int, str], int] = {}

    def add(
        self, number: int, moment: Moment, matched: Match | None, own: Match | None, fresh: bool
    ) -> None:
        """Add a moment of leg `number`.

        `matched` are the predictions that count now, None without any, when all objects are
        missed; `own` the same ones at their own stamp, None if unknown. `fresh`: false alarms
        count, since they did not count before.
        """
        truth = moment.truth
        found = np.zeros(len(truth.names), bool) if matched is None else matched.found
        for track, ignored, hit in zip(truth.ids, truth.ignored, found, strict=True):
            if track and not ignored:
                key = number, track
                first, _ = self._seen.get(key, (moment.stamp_ns, 0))
                self._seen[key] = first, moment.stamp_ns
                if hit:
                    self._found.setdefault(key, moment.stamp_ns)
        self._hits.append(found[~truth.ignored])
        self._areas.append((truth.xyxy[:, 2:] - truth.xyxy[:, :2]).prod(1)[~truth.ignored])
        if matched is None:
            return
        stale = np.zeros(len(matched.hit), bool) if own is None else own.hit
        stale = stale & (matched.false_alarm | matched.wrong_class)
        self._stale.append(int(stale.sum()))
        if fresh:
            self._false_alarms += int((matched.false_alarm & ~stale).sum())
            self._wrong_class += int((matched.wrong_class & ~stale).sum())

    def figures(self) -> dict:
        """Return the figures, as in score.json; None: undefined."""
        hit, area = np.concatenate(self._hits), np.concatenate(self._areas)
        ends = {key: self._found.get(key, last) for key, (_, last) in self._seen.items()}
        waits = [(ends[key] - first) / 1e9 for key, (first, _) in self._seen.items()]
        return {
            "recall": _mean(hit),
            **{
                f"recall_{size}": _mean(hit[(area >= low) & (area < high)])
                for size, (low, high) in SIZES.items()
            },
            "false_alarms_per_minute": self._per_minute(self._false_alarms),
            "wrong_class_per_minute": self._per_minute(self._wrong_class),
            "stale_boxes": _mean(np.array(self._stale), 2),
            "first_detection_s": {
                **kaplan_meier(waits, [key in self._found for key in self._seen]),
                "tracks": len(self._seen),
                "never": len(self._seen) - len(self._found),
            },
        }

    def _per_minute(self, count: int) -> float | None:
        return round(60 * count / self._seconds, 2) if self._seconds else None


def count_legs(
    legs: list[TimedLeg],
    predictions_of: Callable[[Moment], Predictions | None],
    is_fresh: Callable[[Moment], bool],
    confidence: float,
    seconds: float,
    count_without: bool = False,
) -> dict:
    """Return the figures of `Counts` over legs.

    Args:
        legs: the moments.
        predictions_of: the predictions that count at a moment.
        is_fresh: whether false alarms count at this moment, so that each counts once.
        confidence: least score of a prediction.
        seconds: length of the flight.
        count_without: objects of a moment without predictions are missed; else left out.
    """
    total = Counts(seconds)
    for number, leg in enumerate(legs):
        before: Predictions | None = None
        own: Match | None = None
        for moment in leg.moments:
            predictions = predictions_of(moment)
            if predictions is None:
                if count_without:
                    total.add(number, moment, None, None, False)
                continue
            if predictions is not before:
                truth = leg.tracks.at(predictions.stamp_ns)
                own = None if truth is None else match(truth, predictions, confidence)
                before = predictions
            matched = match(moment.truth, predictions, confidence)
            total.add(number, moment, matched, own, is_fresh(moment))
    return total.figures()


def _mean(values: np.ndarray, digits: int = 5) -> float | None:
    return round(float(values.mean()), digits) if len(values) else None
