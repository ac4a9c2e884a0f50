"""--track of drone-kd detect: tracks of the objects, frame by frame."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from drone_kd.core.arrays import Float64Array, UInt8Array
from drone_kd.core.detections import Detections
from drone_kd.media.image_files import VIDEO_SUFFIXES, SourceError
from drone_kd.media.live_streams import is_live, open_source
from drone_kd.text import one_line
from drone_kd.tracking import EgoMotion, Tracker, Tracks, Trails


def clock_of(source: str) -> Callable[[], int]:
    """Return a function that gives the time of the next frame in ns.

    Frames of a file are as far apart as it says, those of a live source as they arrive.

    SourceError: the source is an image or a folder.
    """
    if is_live(source):
        return time.monotonic_ns
    if Path(source).suffix.lower() not in VIDEO_SUFFIXES:
        raise SourceError(
            f"--track: expected a video or a live source, got {one_line(source)}; leave it out"
        )
    capture, period_s = open_source(source)
    capture.release()
    numbers = count()
    return lambda: round(next(numbers) * period_s * 1e9)


class Follower:
    """Follows objects from frame to frame; a frame of another size begins anew.

    `clock`: gives the time of the next frame in ns.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock, self._ego, self._trails = clock, EgoMotion(), Trails()
        self._tracker: Tracker | None = None
        self._size = (0, 0)
        self.trails: list[Float64Array] = []  # of the newest tracks, (M, 2) each

    def __call__(self, image: UInt8Array, detections: Detections) -> Tracks:
        """Return the tracks of a frame that were confirmed; `image`: (h, w, 3) BGR."""
        height, width = image.shape[:2]
        if self._tracker is None:
            self._tracker = Tracker(width, height)
        elif self._size != (width, height):
            self._tracker.resize(width, height)
        self._size = width, height
        stamp_ns = self._clock()
        motion = self._ego.update(image, stamp_ns)
        self._tracker.add_motion(motion)
        self._tracker.update(stamp_ns, detections)
        tracks = self._tracker.predict(stamp_ns)
        tracks = tracks[tracks.confirmed]
        self.trails = self._trails.update(motion, tracks)
        return tracks
