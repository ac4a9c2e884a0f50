"""The record of a flight: ground truth, camera frames and detections, as they arrived.

On disk it is one JSON object per line, written as things happen, so that whatever ends a flight
leaves a record of what was. Times are nanoseconds: "stamp" of the camera's clock, "at" of the
recorder's. Boxes are left, top, right, bottom in pixels of the camera's frames.

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
    """What there is to see at one moment.

    Attributes:
        xyxy: float32 (N, 4), left, top, right, bottom in pixels.
        names: class names, N.
        ids: track ids, N; "" where an object has none.
    """

    xyxy: np.ndarray
    names: tuple[str, ...]
    ids: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Answer:
    """What a detector said of one frame.

    Attributes:
        stamp_ns: of the frame.
        at_ns: when the answer was in a subscriber's hands.
        xyxy: float32 (N, 4), left, top, right, bottom in pixels.
        scores: float32 (N,), in [0, 1].
        names: class names, N.
    """

    stamp_ns: int
    at_ns: int
    xyxy: np.ndarray
    scores: np.ndarray
    names: tuple[str, ...]


@dataclass
class Leg:
    """A part of a flight in which the camera's clock only went forward.

    Attributes:
        truths: by stamp, ns.
        truths_at: by stamp, when the truth arrived, ns.
        frames: stamps of the frames that the camera delivered, ns.
        answers: in the order in which they came.
    """

    truths: dict[int, Truth] = field(default_factory=dict)
    truths_at: dict[int, int] = field(default_factory=dict)
    frames: set[int] = field(default_factory=set)
    answers: list[Answer] = field(default_factory=list)


@dataclass
class Flight:
    """A flight that can be scored.

    Attributes:
        legs: the flight, cut where the camera's clock went back.
        classes: what the detector can say, as it announced; empty if it did not.
        notes: one line for each thing that was not as it should be.
    """

    legs: list[Leg] = field(default_factory=lambda: [Leg()])
    classes: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    def add(self, event: dict) -> None:
        """Take in one event; see the module's docstring.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        if "truth" in event:
            self._add_truth(int(event["truth"]), int(event["at"]), event["boxes"])
        elif "frame" in event:
            stamp = int(event["frame"])
            self._leg_of(stamp).frames.add(stamp)
        elif "answer" in event:
            stamp = int(event["answer"])
            names, scores, xyxy = columns(event["boxes"])
            scores = np.array(scores, np.float32)
            answer = Answer(stamp, int(event["at"]), xyxy, scores, names)
            self._leg_of(stamp).answers.append(answer)
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
        """The newest leg that may hold a stamp: what comes after a jump may be from before it."""
        for leg in reversed(self.legs):
            # A frame may be here before its truth, which came in by another topic.
            if leg.truths and min(leg.truths) <= stamp <= max(leg.truths) + 10**9:
                return leg
        return self.legs[-1]


def columns(boxes: list) -> tuple[tuple[str, ...], list, np.ndarray]:
    """Rows of name, number, x1, y1, x2, y2 to names, numbers and float32 (N, 4)."""
    xyxy = np.array([box[2:] for box in boxes], np.float32).reshape(-1, 4)
    if len(xyxy) != len(boxes) or not np.isfinite(xyxy).all():
        raise ValueError("a box has not four finite coordinates")
    return tuple(str(box[0]) for box in boxes), [box[1] for box in boxes], xyxy


class FlightWriter:
    """Writes a flight's events as they happen."""

    def __init__(self, path: Path) -> None:
        self._file: TextIO = path.open("w", encoding="utf-8", buffering=1)  # line by line
        self.write({"flight": 1})

    def write(self, event: dict) -> None:
        """Append an event; see the module's docstring."""
        self._file.write(json.dumps(event, separators=(",", ":")) + "\n")

    def close(self) -> None:
        """End the record."""
        self._file.close()


def read_flight(path: str | Path) -> Flight:
    """Read a record; one that breaks off in its last line is read as far as it goes, with a note.

    Raises:
        FlightError: the file is not there, or is not such a record.
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
