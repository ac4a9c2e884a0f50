"""Tracks at one time, and the settings of a tracker."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from drone_kd.core.arrays import BoolArray, Float32Array, Int64Array
from drone_kd.core.detections import Detections
from drone_kd.tracking.kalman import Noise


@dataclass(frozen=True)
class TrackerSettings:
    """Settings of a tracker.

    ValueError: one is out of its range.
    """

    high_score: float = 0.25  # detections above it are associated first, and make tracks certain
    new_score: float = 0.0  # detections above it begin a track
    confirm_hits: int = 2  # detections that make a track certain
    max_age_s: float = 1.0  # without a detection, until a certain track ends; others end at once
    horizon_s: float = 1.0  # beyond the newest frame, up to which boxes are predicted
    duplicate_iou: float = 0.7  # boxes of several classes that overlap more are one object
    # A track ends, and is not reported, once its place is less certain than this, in sizes.
    max_deviation: float = 3.0
    score_share: float = 0.3  # of a new score in the mean
    decay: float = 0.7  # of the reported score, per detection that is missing
    noise: Noise = field(default_factory=Noise)

    def __post_init__(self) -> None:
        for name, low, high in (
            ("high_score", 0.0, 1.0),
            ("new_score", 0.0, 1.0),
            ("confirm_hits", 1, 100),
            ("max_age_s", 0.0, 60.0),
            ("horizon_s", 0.0, 10.0),
            ("duplicate_iou", 0.0, 1.0),
            ("max_deviation", 0.01, 100.0),
            ("score_share", 0.0, 1.0),
            ("decay", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name}: expected {low:g} to {high:g}, got {value}")


@dataclass(frozen=True, eq=False)
class Tracks:
    """Boxes of tracks at one time, the certain ones and those of the best scores first."""

    stamp_ns: int  # for which they hold
    ids: Int64Array  # (N,), from 1; never used again in the life of a tracker
    detections: Detections  # boxes in the frame, mean scores, classes by vote
    confirmed: BoolArray  # (N,), seen often enough
    covariance: Float32Array  # (N, 2, 2) of the middle, px²
    velocity: Float32Array  # (N, 2) over the ground in px/s, 0 where it is not significant
    age_s: Float32Array  # (N,), since the first detection
    unseen_s: Float32Array  # (N,), since the last detection

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, keep: BoolArray | Int64Array) -> Tracks:
        d = self.detections
        columns = ("ids", "confirmed", "covariance", "velocity", "age_s", "unseen_s")
        chosen = Detections(d.xyxy[keep], d.scores[keep], d.class_ids[keep])
        return replace(self, detections=chosen, **{c: getattr(self, c)[keep] for c in columns})
