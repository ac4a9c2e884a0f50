"""Mailbox between the executor, which receives frames, and the worker, which detects."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple, TypeAlias

from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from drone_kd.ros.local_image import LocalImage

ImageMessage: TypeAlias = Image | CompressedImage | LocalImage

_WAIT_SECONDS = 60.0


class Frame(NamedTuple):
    """A camera's image message."""

    camera: str
    topic: str  # full name of the topic it came from
    message: ImageMessage
    transport_ms: float | None  # from the image's stamp to reception; None if the stamp is zero
    received: float  # `perf_counter` seconds

    def age_ms(self) -> float:
        """Return the age at reception; 0: unknown, or stamped by a clock that is ahead."""
        return max(self.transport_ms or 0.0, 0.0)


def stamp_ns(header: Header) -> int:
    """Return a header's stamp in nanoseconds; 0: there is none."""
    return header.stamp.sec * 10**9 + header.stamp.nanosec


class Inbox:
    """Holds the newest frame of each camera."""

    def __init__(self, cameras: Sequence[str]) -> None:
        self.closed = False
        self._condition = threading.Condition()
        self._frames: dict[str, Frame] = {}
        # Least recently served camera first, and the earliest time of each camera's next turn.
        self._turns = list(cameras)
        self._not_before = dict.fromkeys(cameras, 0.0)
        self._woken = False

    def put(self, frame: Frame) -> bool:
        """Store a frame; return whether it replaced one that was not taken."""
        with self._condition:
            replaced = frame.camera in self._frames
            self._frames[frame.camera] = frame
            self._condition.notify()
            return replaced

    def take(self, limit: int, max_rate: float) -> list[Frame] | None:
        """Wait for up to `limit` frames, from the least recently served cameras.

        `max_rate` is in frames per second per camera; 0: no limit. Returns at least one frame;
        none after `wake`; None once the inbox is closed.
        """
        with self._condition:
            while True:
                if self.closed:
                    return None
                if self._woken:  # `max_rate` may be another one by now
                    self._woken = False
                    return []
                now = perf_counter()
                due = [
                    camera
                    for camera in self._turns
                    if camera in self._frames and self._not_before[camera] <= now
                ][:limit]
                if due:
                    break
                waits = [self._not_before[camera] - now for camera in self._frames]
                # Python refuses to wait for centuries, which a very small rate asks for.
                self._condition.wait(min(*waits, _WAIT_SECONDS) if waits else None)
            for camera in due:
                self._turns.remove(camera)
                self._turns.append(camera)
                if max_rate:
                    # A slightly late frame does not delay the next one: the average rate is met.
                    period = 1 / max_rate
                    late = now - self._not_before[camera]
                    slack = min(late, period / 2) if late < period else 0.0
                    self._not_before[camera] = now + period - slack
            return [self._frames.pop(camera) for camera in due]

    def wake(self) -> None:
        """Make `take` return, so that the worker rereads its settings; rate limits restart."""
        with self._condition:
            self._not_before = dict.fromkeys(self._not_before, 0.0)
            self._woken = True
            self._condition.notify()

    def clear(self) -> list[Frame]:
        """Remove and return all waiting frames."""
        with self._condition:
            frames = list(self._frames.values())
            self._frames.clear()
            return frames

    def close(self) -> None:
        """Make `take` return None from now on."""
        with self._condition:
            self.closed = True
            self._condition.notify()
