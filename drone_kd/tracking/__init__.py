"""Tracks of objects with ids, camera motion, and boxes forecast to any time.

Arrays in, arrays out: no ROS, no clock.
"""

from drone_kd.tracking.ego_motion import EgoMotion, Motion, Quality
from drone_kd.tracking.kalman import Noise
from drone_kd.tracking.tracker import Tracker
from drone_kd.tracking.tracks import TrackerSettings, Tracks
from drone_kd.tracking.trails import Trails

__all__ = [
    "EgoMotion",
    "Motion",
    "Noise",
    "Quality",
    "Tracker",
    "TrackerSettings",
    "Tracks",
    "Trails",
]
