"""Trails: where tracked objects were over the ground, in pixels of the newest frame."""

from __future__ import annotations

import numpy as np

from drone_kd.core.arrays import Float64Array
from drone_kd.tracking.ego_motion import Motion
from drone_kd.tracking.homography import warp_points
from drone_kd.tracking.tracks import Tracks

_POINTS = 40


class Trails:
    """Newest 40 places of each object; those of a parked car stay in one place."""

    def __init__(self) -> None:
        self._places: dict[int, Float64Array] = {}

    def update(self, motion: Motion, tracks: Tracks) -> list[Float64Array]:
        """Add the tracks of the frame of a motion; trails end where the motion is lost.

        Returns:
            A trail (M, 2) per track, in the order of `tracks`, oldest place first.
        """
        before = self._places if motion.homography is not None else {}
        xyxy = tracks.detections.xyxy.astype(np.float64)
        self._places = {}
        for id_, middle in zip(tracks.ids.tolist(), (xyxy[:, :2] + xyxy[:, 2:]) / 2, strict=True):
            trail = middle[None]
            if id_ in before and motion.homography is not None:
                moved = warp_points(motion.homography, before[id_][-_POINTS + 1 :])
                trail = np.vstack([moved[np.isfinite(moved).all(axis=1)], trail])
            self._places[id_] = trail
        return list(self._places.values())
