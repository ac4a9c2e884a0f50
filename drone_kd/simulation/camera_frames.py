"""Frames of a source, made a few ahead in a thread, each for the time at which it is due."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from drone_kd.simulation.replay import LabelledFrame
from drone_kd.simulation.scene import CLASSES, FlightPlan, SceneFrames
from drone_kd.simulation.scoring.flight_record import Truth

_FRAMES_AHEAD = 4
_STOP_SECONDS = 1.0
# Recorded footage that is later is delivered late: skipping would never catch up.
_SKIPPED_S = 1.0


class NumberedFrame(NamedTuple):
    """A frame that shows the scene at number / rate seconds; `frame` is None behind the last."""

    number: int
    frame: LabelledFrame | None


def generated(plan: FlightPlan, due: Callable[[], int]) -> Iterator[NumberedFrame]:
    """Yield frames of a generated flight without end; those before `due()` are not rendered."""
    scene, number = SceneFrames(plan), 0
    while True:
        number = max(number, due())
        frame = scene.at(number / plan.fps, number)
        names = tuple(CLASSES[i] for i in frame.class_ids)
        truth = Truth(frame.xyxy, names, tuple(map(str, frame.ids)))
        yield NumberedFrame(number, LabelledFrame(frame.image, truth))
        number += 1


def in_time(
    frames: Iterable[LabelledFrame], due: Callable[[], int], rate_hz: float
) -> Iterator[NumberedFrame]:
    """Number the frames of recorded footage; those shortly before `due()` are left out."""
    for number, frame in enumerate(frames):
        if not 0 < due() - number < _SKIPPED_S * rate_hz:
            yield NumberedFrame(number, frame)


class FramesAhead:
    """Makes frames in a thread, so that one slow frame does not break the rate.

    Attributes:
        began_s: when the flight began, on the steady clock; None: not yet.
    """

    def __init__(self, rate_hz: float) -> None:
        self.began_s: float | None = None
        self._rate_hz = rate_hz
        self._queue: queue.Queue[NumberedFrame | Exception] = queue.Queue(_FRAMES_AHEAD)
        self._head: NumberedFrame | Exception | None = None
        self._cost_s = 0.0  # of the last frame
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def due(self) -> int:
        """Return the number of the first frame that can be made before it is due."""
        if self.began_s is None:
            return 0
        return math.ceil((time.monotonic() - self.began_s + self._cost_s) * self._rate_hz)

    def start(self, frames: Iterator[NumberedFrame]) -> NumberedFrame | None:
        """Make the first frame, then start the thread; returns that frame, None without any."""
        first = next(frames, None)
        if first is not None:
            self._queue.put(first)
            self._thread = threading.Thread(target=self._fill, args=(frames,), daemon=True)
            self._thread.start()
        return first

    def take(self, number: int) -> NumberedFrame | None:
        """Return the newest frame made of those due up to `number`; None: there is none.

        Raises:
            Exception: what the source raised.
        """
        newest = None
        while True:
            if self._head is None:
                try:
                    self._head = self._queue.get_nowait()
                except queue.Empty:
                    return newest
            if isinstance(self._head, Exception):
                if newest is None:
                    raise self._head
                return newest
            # The end comes after the last frame, never instead of it.
            if self._head.number > number or (newest is not None and self._head.frame is None):
                return newest
            newest, self._head = self._head, None

    def stop(self) -> bool:
        """Stop the thread; returns False if it hangs."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)
        return self._thread is None or not self._thread.is_alive()

    def _fill(self, frames: Iterator[NumberedFrame]) -> None:
        number = 0
        try:
            while not self._stopping.is_set():
                started = time.monotonic()
                made = next(frames, None)
                if made is None:
                    return self._put(NumberedFrame(number + 1, None))
                self._cost_s, number = time.monotonic() - started, made.number
                self._put(made)
        except Exception as error:  # re-raised in the main thread, which ends the node
            self._put(error)

    def _put(self, item: NumberedFrame | Exception) -> None:
        while not self._stopping.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
