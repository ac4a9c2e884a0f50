"""Flight record: ground truth, camera frames and detections, as they arrived.

On disk it is one JSON object per line, written at once, so that a crash leaves a usable record.
Times are nanoseconds: STAMP of the camera's clock, AT (the arrival) of the recorder's. Boxes are
left, top, right, bottom in pixels of the camera's frames.

    {"flight": 1}
    {"rate": CAMERA_RATE_HZ}
    {"truth": STAMP, "at": AT, "boxes": [[CLASS, TRACK_ID, X1, Y1, X2, Y2], ...]}
    {"frame": STAMP, "at": AT}
    {"result": STAMP, "at": AT, "boxes": [[CLASS, SCORE, X1, Y1, X2, Y2], ...]}
    {"classes": [CLASS, ...]}

A seventh value of true in a row of ground truth marks an object to ignore. Boxes that are none,
e.g. with NaN, are left out; "dropped" in an event is their number.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from drone_kd.parsing import ParseError, open_regular, parse_json
from drone_kd.text import one_line

# Per message: a detector publishes at most 1,000.
MAX_BOXES = 3000
# Of a coordinate, in pixels.
_MAX_PX = 1e6
_MAX_NAME = 100
_MAX_LINE_BYTES = 16_000_000
# A larger change of arrival - stamp from one message to the next is a jump of the camera's clock.
_JUMP_NS = 5 * 10**8
# Legs of a flight, and the newest ones to which a late message may belong.
_MAX_LEGS, _LATE_LEGS = 1000, 20


class FlightError(ValueError):
    """A flight cannot be read or scored; the message is one line."""


@dataclass(frozen=True, eq=False)
class Truth:
    """Ground truth of one moment."""

    xyxy: np.ndarray  # float32 (N, 4), left, top, right, bottom in pixels
    names: tuple[str, ...]  # class names, N
    ids: tuple[str, ...]  # track ids, N; "" for an object without one
    # bool (N,): little visible, or cut by the border; finding it is neither a hit nor an alarm.
    ignored: np.ndarray = None  # type: ignore[assignment]  # default: none is

    def __post_init__(self) -> None:
        if self.ignored is None:
            object.__setattr__(self, "ignored", np.zeros(len(self.names), bool))


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
    """A part of a flight in which the camera's clock does not jump. Stamps in ns."""

    truths: dict[int, Truth] = field(default_factory=dict)  # by stamp
    truths_at: dict[int, int] = field(default_factory=dict)  # arrival in ns by stamp
    frames: set[int] = field(default_factory=set)  # stamps of the delivered frames
    predictions: list[Predictions] = field(default_factory=list)  # in the order of arrival


@dataclass
class Flight:
    """A flight that can be scored, cut into legs where the camera's clock jumps."""

    legs: list[Leg] = field(default_factory=lambda: [Leg()])
    classes: tuple[str, ...] = ()  # that the detector announced; empty if it did not
    rate_hz: float | None = None  # that the camera was asked for
    notes: list[str] = field(default_factory=list)  # one line per irregularity
    dropped: int = 0  # unusable boxes

    def add(self, event: dict) -> None:
        """Add one event; see the module's docstring.

        Raises:
            ArithmeticError, KeyError, TypeError, ValueError: not an event.
        """
        self.dropped += max(int(event.get("dropped", 0)), 0)
        if "truth" in event:
            boxes, dropped = usable_boxes(event["boxes"])
            self._add_truth(_time(event["truth"]), _time(event["at"]), boxes)
            self.dropped += dropped
        elif "frame" in event:
            stamp = _time(event["frame"])
            self._leg_of(stamp).frames.add(stamp)
        elif "result" in event or "answer" in event:  # the latter: version 0.1
            stamp = _time(event["result"] if "result" in event else event["answer"])
            boxes, dropped = usable_boxes(event["boxes"], scored=True)
            self.dropped += dropped
            names, scores, xyxy = columns(boxes)
            self._leg_of(stamp).predictions.append(
                Predictions(stamp, _time(event["at"]), xyxy, np.array(scores, np.float32), names)
            )
        elif "rate" in event:
            rate = float(event["rate"])
            if not 0 < rate < 1e4:
                raise ValueError("expected a rate in Hz")
            self.rate_hz = rate
        elif "classes" in event:
            self.classes = tuple(map(class_name, event["classes"][:MAX_BOXES]))
        else:
            raise KeyError("unknown event")

    def _add_truth(self, stamp: int, at: int, boxes: list) -> None:
        leg = self.legs[-1]
        # In a leg stamps only grow.
        newest = next(reversed(leg.truths), None)
        if newest is not None:
            ahead = stamp - newest
            jump = ahead - (at - leg.truths_at[newest])
            if ahead < 0 or abs(jump) > _JUMP_NS:
                leg = self._new_leg(newest, ahead if ahead < 0 else jump)
        leg.truths[stamp] = truth_of(boxes)
        leg.truths_at[stamp] = at

    def _new_leg(self, newest: int, jump: int) -> Leg:
        """Begin a leg, after a jump of the camera's clock in ns behind the stamp `newest`."""
        self.notes.append(
            f"the camera's clock went {'back' if jump < 0 else 'forward'} by "
            f"{abs(jump) / 1e9:.1f} s, "
            f"{(newest - next(iter(self.legs[0].truths))) / 1e9:.1f} s after the start"
        )
        if len(self.legs) == _MAX_LEGS:
            raise ValueError(f"the camera's clock jumped more than {_MAX_LEGS - 1} times")
        self.legs.append(Leg())
        return self.legs[-1]

    def _leg_of(self, stamp: int) -> Leg:
        """Return the newest leg that may hold a stamp, of the last `_LATE_LEGS`."""
        for leg in reversed(self.legs[-_LATE_LEGS:]):
            # Topics are not ordered: a frame may arrive before its ground truth.
            if not leg.truths:
                continue
            if next(iter(leg.truths)) <= stamp <= next(reversed(leg.truths)) + 10**9:
                return leg
        return self.legs[-1]


def usable_boxes(boxes: list, scored: bool = False) -> tuple[list, int]:
    """Return rows of a flight record whose box is one, and how many others were dropped.

    A box has finite coordinates of at most 1e6 px, and its right and bottom are not below its left
    and top. `scored`: the second value is a score, which has to be finite. The first `MAX_BOXES`
    are looked at. ValueError, TypeError: a row has another form.
    """
    rows = [row for row in boxes[:MAX_BOXES] if _is_usable(row, scored)]
    return rows, len(boxes) - len(rows)


@lru_cache(1000)
def class_name(text: object) -> str:
    """Return a class name of others as one printable line of at most 100 characters."""
    return one_line(text, _MAX_NAME)


def _is_usable(row: list, scored: bool) -> bool:
    if len(row) != 6 and (scored or len(row) != 7):
        raise ValueError(f"expected six values per box, got {len(row)}")
    if scored and not math.isfinite(row[1]):
        return False
    left, top, right, bottom = row[2:6]
    # Comparisons with NaN are false.
    return -_MAX_PX <= left <= right <= _MAX_PX and -_MAX_PX <= top <= bottom <= _MAX_PX


def _time(value: Any) -> int:
    """Return a time in ns; ArithmeticError, TypeError or ValueError: it is none."""
    time = int(value)
    if abs(time) >= 2**63:
        raise ValueError("expected a time in ns")
    return time


def columns(boxes: list) -> tuple[tuple[str, ...], list, np.ndarray]:
    """Split rows of name, number, x1, y1, x2, y2, ... into names, numbers and float32 (N, 4).

    Raises:
        ValueError: a row without four finite coordinates.
    """
    xyxy = np.array([box[2:6] for box in boxes], np.float32).reshape(-1, 4)
    if len(xyxy) != len(boxes) or not np.isfinite(xyxy).all():
        raise ValueError("expected four finite coordinates per box")
    return tuple(class_name(box[0]) for box in boxes), [box[1] for box in boxes], xyxy


def truth_of(boxes: list) -> Truth:
    """Return rows of ground truth, of six or seven values, as ground truth; see `columns`."""
    names, ids, xyxy = columns(boxes)
    ignored = np.array([len(box) > 6 and bool(box[6]) for box in boxes], bool)
    return Truth(xyxy, names, tuple(map(str, ids)), ignored)


class FlightWriter:
    """Writes the events of a flight at once, line by line, into a file for this user alone.

    OSError: the file cannot be written, or is a link.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        self._file: TextIO = os.fdopen(descriptor, "w", encoding="utf-8", buffering=1)
        self.write({"flight": 1})

    def write(self, event: dict) -> None:
        """Append an event; see the module's docstring."""
        self._file.write(json.dumps(event, separators=(",", ":")) + "\n")

    def close(self) -> None:
        """Close the record."""
        self._file.close()


def read_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Yield number, from 1, and bytes of the lines of a file of JSON lines that are not empty.

    ParseError: the file cannot be read, or a line is too long.
    """
    with open_regular(path) as file:
        number = 0
        while line := file.readline(_MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > _MAX_LINE_BYTES:
                limit = f"{_MAX_LINE_BYTES / 1e6:g} MB"
                raise ParseError(f"{one_line(path)}, line {number}: expected at most {limit}")
            if line.strip():
                yield number, line


def read_flight(path: str | Path) -> Flight:
    """Read a record; one that is truncated in its last line is read up to there, with a note.

    Unusable boxes are dropped, with a note.

    Raises:
        FlightError: the file is missing or is not a flight record.
    """
    flight, begun = Flight(), False
    try:
        for number, line in read_lines(path):
            if not begun:
                begun = number == 1 and line.startswith(b'{"flight":1')
                if not begun:
                    break
                continue
            try:
                flight.add(parse_json(line, f"line {number}"))
            except (
                ArithmeticError,
                AttributeError,
                KeyError,
                TypeError,
                ValueError,
                IndexError,
            ) as error:
                if not line.endswith(b"\n"):
                    flight.notes.append("the record breaks off in the middle of a line")
                    break
                problem = f"line {number}: not an event: {one_line(error)}"
                raise FlightError(f"{one_line(path)}, {problem}") from None
    except ParseError as error:
        raise FlightError(str(error)) from None
    if not begun:
        expected = 'the record of a flight, whose first line is {"flight":1}'
        raise FlightError(f"{one_line(path)}: expected {expected}")
    if flight.dropped:
        flight.notes.append(f"{flight.dropped} unusable boxes were dropped")
    return flight
