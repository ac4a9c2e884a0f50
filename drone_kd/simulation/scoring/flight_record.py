"""Flight record: ground truth, camera frames and detections, as they arrived.

On disk it is one JSON object per line, written at once, so that a crash leaves a usable record.
Times are nanoseconds: STAMP of the camera's clock, AT (the arrival) of the recorder's. Boxes are
left, top, right, bottom in pixels of the camera's frames.

    {"flight": 1}
    {"truth": STAMP, "at": AT, "boxes": [[CLASS, TRACK_ID, X1, Y1, X2, Y2], ...]}
    {"frame": STAMP, "at": AT}
    {"answer": STAMP, "at": AT, "boxes": [[CLASS, SCORE, X1, Y1, X2, Y2], ...]}
    {"classes": [CLASS, ...]}
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np


class FlightError(ValueError):
    """A flight cannot be read or scored; the message is one line."""


@dataclass(frozen=True, eq=False)
class Truth:
    """Ground truth of one moment."""

    xyxy: np.ndarray  # float32 (N, 4), left, top, right, bottom in pixels
    names: tuple[str, ...]  # class names, N
    ids: tuple[str, ...]  # track ids, N; "" for an object without one


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of a detector for one frame."""

    stamp_ns: int  # of the frame
    at_ns: int  # when the predictions reached a subscriber
    xyxy: np.ndarray  # float32 (N, 4), left, top, right, bottom in pixels
    scores: np.ndarray  # float32 (N,), in [0, 1]
    names: tuple[str, ...]  # class names, N


@dataclass
class Leg:
    """A part of a flight in which the camera's clock only moves forward. Stamps in ns."""

    truths: dict[int, Truth] = field(default_factory=dict)  # by stamp
    truths_at: dict[int, int] = field(default_factory=dict)  # arrival in ns by stamp
    frames: set[int] = field(default_factory=set)  # stamps of the delivered frames
    predictions: list[Predictions] = field(default_factory=list)  # in the order of arrival


@dataclass
class Flight:
    """A flight that can be scored, cut into legs where the camera's clock jumps back."""

    legs: list[Leg] = field(default_factory=lambda: [Leg()])
    classes: tuple[str, ...] = ()  # that the detector announced; empty if it did not
    notes: list[str] = field(default_factory=list)  # one line per irregularity

    def add(self, event: dict) -> None:
        """Add one event; see the module's docstring.

        Raises:
            KeyError, TypeError, ValueError: not an event.
        """
        if "truth" in event:
            self._add_truth(int(event["truth"]), int(event["at"]), event["boxes"])
        elif "frame" in event:
            stamp = int(event["frame"])
            self._leg_of(stamp).frames.add(stamp)
        elif "answer" in event:
            stamp = int(event["answer"])
            names, scores, xyxy = columns(event["boxes"])
            self._leg_of(stamp).predictions.append(
                Predictions(stamp, int(event["at"]), xyxy, np.array(scores, np.float32), names)
            )
        elif "classes" in event:
            self.classes = tuple(map(str, event["classes"]))
        else:
            raise KeyError(f"unknown event {sorted(event)}")

    def _add_truth(self, stamp: int, at: int, boxes: list) -> None:
        leg = self.legs[-1]
        newest = max(leg.truths, default=stamp)
        if stamp < newest:
            self.notes.append(
                f"the camera's clock went back by {(newest - stamp) / 1e9:.1f} s, "
                f"{(newest - min(self.legs[0].truths)) / 1e9:.1f} s after the start"
            )
            leg = Leg()
            self.legs.append(leg)
        names, ids, xyxy = columns(boxes)
        leg.truths[stamp] = Truth(xyxy, names, tuple(map(str, ids)))
        leg.truths_at[stamp] = at

    def _leg_of(self, stamp: int) -> Leg:
        """Return the newest leg that may hold a stamp."""
        for leg in reversed(self.legs):
            # Topics are not ordered: a frame may arrive before its ground truth.
            if leg.truths and min(leg.truths) <= stamp <= max(leg.truths) + 10**9:
                return leg
        return self.legs[-1]


def columns(boxes: list) -> tuple[tuple[str, ...], list, np.ndarray]:
    """Split rows of name, number, x1, y1, x2, y2 into names, numbers and float32 (N, 4).

    Raises:
        ValueError: a row without four finite coordinates.
    """
    xyxy = np.array([box[2:] for box in boxes], np.float32).reshape(-1, 4)
    if len(xyxy) != len(boxes) or not np.isfinite(xyxy).all():
        raise ValueError("expected four finite coordinates per box")
    return tuple(str(box[0]) for box in boxes), [box[1] for box in boxes], xyxy


class FlightWriter:
    """Writes the events of a flight at once, line by line."""

    def __init__(self, path: Path) -> None:
        self._file: TextIO = path.open("w", encoding="utf-8", buffering=1)
        self.write({"flight": 1})

    def write(self, event: dict) -> None:
        """Append an event; see the module's docstring."""
        self._file.write(json.dumps(event, separators=(",", ":")) + "\n")

    def close(self) -> None:
        """Close the record."""
        self._file.close()


def read_flight(path: str | Path) -> Flight:
    """Read a record; one that is truncated in its last line is read up to there, with a note.

    Raises:
        FlightError: the file is missing or is not a flight record.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise FlightError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not lines[0].startswith('{"flight":1'):
        raise FlightError(
            f'{path}: expected the record of a flight, whose first line is {{"flight":1}}'
        )
    flight = Flight()
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        try:
            flight.add(json.loads(line))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            if number == len(lines):  # no newline after it
                flight.notes.append("the record breaks off in the middle of a line")
                break
            raise FlightError(f"{path}, line {number}: not an event: {error}") from None
    return flight
