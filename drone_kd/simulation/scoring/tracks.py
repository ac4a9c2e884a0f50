"""Ground truth between the camera's frames: true tracks interpolated on a grid of times."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

from drone_kd.simulation.scoring.flight_record import Leg, Truth

GRID_NS = 10**7
# Between frames farther apart the way of an object is not known.
MAX_GAP_NS = 10**9


class TrueTracks:
    """Ground truth of a leg at any time between its first and its last frame.

    The box of a track is linear between two frames in which the same track is labelled. An object
    in only one of them, or without a track id, is an ignore region in between.
    """

    def __init__(self, leg: Leg) -> None:
        self._stamps = sorted(leg.truths)
        self._truths = [leg.truths[stamp] for stamp in self._stamps]
        self._shared: tuple[int, Truth, np.ndarray] | None = None

    def grid(self) -> Iterator[int]:
        """Yield every 10 ms since the first frame; without track ids, the frames' stamps.

        Times between frames more than a second apart are left out.
        """
        if not any(any(truth.ids) for truth in self._truths):
            yield from self._stamps
            return
        for at in range(self._stamps[0], self._stamps[-1] + 1, GRID_NS):
            if self.at(at) is not None:
                yield at

    def at(self, at_ns: int) -> Truth | None:
        """Return the ground truth at a time; None: it is not known."""
        after = bisect_right(self._stamps, at_ns)
        if after and self._stamps[after - 1] == at_ns:
            return self._truths[after - 1]
        if not 0 < after < len(self._stamps):
            return None
        begin, end = self._stamps[after - 1], self._stamps[after]
        if end - begin > MAX_GAP_NS:
            return None
        if self._shared is None or self._shared[0] != after:
            self._shared = (after, *_between(self._truths[after - 1], self._truths[after]))
        _, first, way = self._shared
        xyxy = first.xyxy + np.float32((at_ns - begin) / (end - begin)) * way
        return Truth(xyxy, first.names, first.ids, first.ignored)


def _between(first: Truth, last: Truth) -> tuple[Truth, np.ndarray]:
    """Return the objects between two frames, at the time of the first, and their way (N, 4)."""
    there = {key: k for k, key in enumerate(zip(last.ids, last.names, strict=True)) if key[0]}
    xyxy, ways, names, ids, ignored = [], [], [], [], []
    for k, key in enumerate(zip(first.ids, first.names, strict=True)):
        end = there.pop(key, None)
        box = first.xyxy[k]
        xyxy.append(box)
        ways.append(0 * box if end is None else last.xyxy[end] - box)
        ids.append(key[0])
        names.append(key[1])
        ignored.append(end is None or first.ignored[k] or last.ignored[end])
    begun = {key for key in zip(first.ids, first.names, strict=True) if key[0]}
    for k, key in enumerate(zip(last.ids, last.names, strict=True)):
        if key not in begun:
            xyxy.append(last.xyxy[k])
            ways.append(0 * last.xyxy[k])
            ids.append(key[0])
            names.append(key[1])
            ignored.append(True)
    boxes, way = (np.array(rows, np.float32).reshape(-1, 4) for rows in (xyxy, ways))
    return Truth(boxes, tuple(names), tuple(ids), np.array(ignored, bool)), way
