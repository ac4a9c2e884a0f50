"""The place between the executor, which receives, and the worker, which detects."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple

from sensor_msgs.msg import CompressedImage, Image


class Frame(NamedTuple):
    """A camera's message, as received.

    Attributes:
        camera: name of the camera.
        message: the image.
        transport_ms: from the camera's stamp to here; None where the stamp is zero.
        received: `perf_counter` seconds.
    """

    camera: str
    message: Image | CompressedImage
    transport_ms: float | None
    received: float


class Inbox:
    """Holds the newest frame of every camera; a newer one replaces it.

    Args:
        cameras: their names.
    """

    def __init__(self, cameras: Sequence[str]) -> None:
        self._condition = threading.Condition()
        self._frames: dict[str, Frame] = {}
        # Cameras in the order of their turns, and the time before which none has its next one.
        self._turns = list(cameras)
        self._not_before = dict.fromkeys(cameras, 0.0)
        self._woken = False
        self._closed = False

    def put(self, frame: Frame) -> bool:
        """Leave a frame; returns whether it replaced one that nobody took."""
        with self._condition:
            replaced = frame.camera in self._frames
            self._frames[frame.camera] = frame
            self._condition.notify()
            return replaced

    def take(self, limit: int, max_rate: float) -> list[Frame] | None:
        """Wait for frames.

        Args:
            limit: take the frames of so many cameras at most; those served longest ago first.
            max_rate: frames per second and camera at most; 0: as they come.

        Returns:
            At least one frame, none after `wake`, or None once the inbox is closed.
        """
        with self._condition:
            while True:
                if self._closed:
                    return None
                now = perf_counter()
                due = [
                    camera
                    for camera in self._turns
                    if camera in self._frames and self._not_before[camera] <= now
                ][:limit]
                if due or self._woken:
                    break
                waits = [self._not_before[camera] - now for camera in self._frames]
                self._condition.wait(min(waits, default=None))
            self._woken = False
            for camera in due:
                self._turns.remove(camera)
                self._turns.append(camera)
                if max_rate:
                    # A frame that came a little after its time does not delay the next one, so
                    # that the rate is met on average.
                    period = 1 / max_rate
                    late = now - self._not_before[camera]
                    slack = min(late, period / 2) if late < period else 0.0
                    self._not_before[camera] = now + period - slack
            return [self._frames.pop(camera) for camera in due]

    def wake(self) -> None:
        """Make `take` return, so that the worker looks at its settings; limits of rate restart."""
        with self._condition:
            self._not_before = dict.fromkeys(self._not_before, 0.0)
            self._woken = True
            self._condition.notify()

    def clear(self) -> list[Frame]:
        """Take all frames that wait."""
        with self._condition:
            frames = list(self._frames.values())
            self._frames.clear()
            return frames

    def close(self) -> None:
        """Make `take` return None from now on."""
        with self._condition:
            self._closed = True
            self._condition.notify()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed
