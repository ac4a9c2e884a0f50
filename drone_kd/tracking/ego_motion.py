"""Camera motion between neighbouring frames, from corners that are followed from frame to frame.

Corners (Shi and Tomasi 1994) are followed by pyramidal Lucas-Kanade in an image of at most 640
pixels; a homography is fitted by RANSAC, or a similarity where there are few corners.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import cv2
import numpy as np

from drone_kd.core.arrays import BoolArray, Float32Array, Float64Array, UInt8Array
from drone_kd.tracking.homography import jacobians, warp_points

_SIDE_PX = 640  # longer side of the reduced image
_CORNERS, _RENEW = 220, 150  # followed at most; with fewer, new ones are looked for
_SPACING_PX = 18  # between corners
_WINDOW_PX, _LEVELS = 15, 3
_CRITERIA = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 12, 0.03)
_RANSAC_PX = 1.0  # in the reduced image
# Below these a motion is lost, or degraded.
_LOST_INLIERS, _LOST_SHARE = 10, 0.35
_WEAK_INLIERS, _WEAK_SHARE = 30, 0.55
# Standard deviation of the inliers of a homography, across and down.
_MIN_SPREAD_PX = 40
# Of the middle of the image, in sides: no drone's camera does more between two frames.
_MAX_SCALE, _MAX_SHIFT = 1.6, 0.7


class Quality(Enum):
    """Quality of a measured camera motion."""

    OK = "OK"
    DEGRADED = "DEGRADED"  # few corners agree
    LOST = "LOST"  # there is no usable motion


@dataclass(frozen=True, eq=False)
class Motion:
    """Camera motion from the frame before to the frame of a stamp.

    Supply one with `homography` alone where odometry, a gimbal or an IMU knows better.
    """

    stamp_ns: int  # of the frame
    # float64 (3, 3), from pixels of the frame before to those of this one; None: lost
    homography: Float64Array | None
    quality: Quality = Quality.OK
    inliers: int = 0  # corners that agree
    residual_px: float = 0.0  # root mean square of their distances, in pixels of the frame


class EgoMotion:
    """Measures the camera motion frame by frame; not for several threads at once."""

    def __init__(self) -> None:
        self._grey: UInt8Array | None = None  # the frame before, reduced
        self._size: tuple[int, int] = (0, 0)  # of the frame before
        self._corners: Float32Array = np.zeros((0, 2), np.float32)
        self._last: Float64Array = np.eye(3)  # motion in the reduced image

    def update(self, image: UInt8Array, stamp_ns: int) -> Motion:
        """Return the motion since the frame before; LOST for a first frame.

        A frame without features, a cut in a video or a change of size is LOST, too.

        Args:
            image: uint8 (h, w, 3) BGR or (h, w) grey.
            stamp_ns: time of the frame in nanoseconds.

        Raises:
            ValueError: no such image.
        """
        colours = image.shape[2:]
        if (
            image.dtype != np.uint8
            or colours not in ((), (3,))
            or image.ndim < 2
            or not image.size
        ):
            got = f"{image.dtype} {image.shape}"
            raise ValueError(f"image: expected uint8 (h, w, 3) BGR or (h, w) grey, got {got}")
        height, width = image.shape[:2]
        grey = _reduced(image)
        before = self._grey if self._size == (width, height) else None
        self._grey, self._size = grey, (width, height)
        homography, corners, share, residual = (
            _nothing() if before is None else _measure(before, grey, self._corners, self._last)
        )
        if homography is None:
            self._corners, self._last = _with_new(grey, corners[:0]), np.eye(3)
            return Motion(stamp_ns, None, Quality.LOST, len(corners))
        inliers = len(corners)
        self._last = homography
        self._corners = _with_new(grey, corners) if inliers < _RENEW else corners
        good = inliers >= _WEAK_INLIERS and share >= _WEAK_SHARE
        quality = Quality.OK if good else Quality.DEGRADED
        scale_x, scale_y = width / grey.shape[1], height / grey.shape[0]
        # In pixels whose corner, not whose middle, is 0: as boxes are.
        scale = np.array([[scale_x, 0, scale_x / 2], [0, scale_y, scale_y / 2], [0, 0, 1]])
        full = scale @ homography @ np.linalg.inv(scale)
        return Motion(stamp_ns, full / full[2, 2], quality, inliers, residual * scale_x)


def _nothing() -> _Measured:
    return _Measured(None, np.zeros((0, 2), np.float32), 0.0, 0.0)


class _Measured(NamedTuple):
    homography: Float64Array | None  # of the reduced image
    corners: Float32Array  # (N, 2), the inliers in the later image
    share: float  # of the corners that are inliers
    residual: float  # root mean square, in pixels of the reduced image


def _measure(
    before: UInt8Array, now: UInt8Array, corners: Float32Array, last: Float64Array
) -> _Measured:
    """Follow corners and fit a motion to them; `last`: the motion before, a first guess."""
    if len(corners) < _LOST_INLIERS:
        return _nothing()
    guess = warp_points(last, corners.astype(np.float64)).astype(np.float32)
    moved, status, _ = cv2.calcOpticalFlowPyrLK(
        before,
        now,
        corners,
        np.where(np.isfinite(guess), guess, corners),
        winSize=(_WINDOW_PX, _WINDOW_PX),
        maxLevel=_LEVELS,
        criteria=_CRITERIA,
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
    )
    height, width = now.shape
    inside = ((moved >= 0) & (moved < (width, height))).all(1)
    found = (status.ravel() == 1) & inside
    start, end = corners[found], moved[found]
    if len(start) < _LOST_INLIERS:
        return _nothing()
    homography, inliers = _fit(start, end)
    if homography is None or inliers.sum() < _LOST_INLIERS:
        return _nothing()
    distances = warp_points(homography, start[inliers].astype(np.float64)) - end[inliers]
    residual = float(np.sqrt((distances**2).sum(1).mean()))
    share = float(inliers.mean())
    if share < _LOST_SHARE or not _is_plausible(homography, width, height):
        return _nothing()
    return _Measured(homography, end[inliers], share, residual)


def _fit(start: Float32Array, end: Float32Array) -> tuple[Float64Array | None, BoolArray]:
    """Return the homography or similarity of most corners, and which these are (N,)."""
    # The generator of OpenCV is the process's own: the same frames give the same motion.
    cv2.setRNGSeed(0)
    none = np.zeros(len(start), bool)
    homography, mask = cv2.findHomography(
        start, end, cv2.RANSAC, _RANSAC_PX, maxIters=300, confidence=0.995
    )
    if homography is not None:
        inliers = mask.ravel() == 1
        spread = start[inliers].std(0) if inliers.any() else np.zeros(2)
        # Few corners, or all in one place, do not determine eight numbers.
        if inliers.sum() >= _WEAK_INLIERS and spread.min() > _MIN_SPREAD_PX:
            return np.asarray(homography, np.float64), inliers
    similarity, mask = cv2.estimateAffinePartial2D(
        start, end, method=cv2.RANSAC, ransacReprojThreshold=_RANSAC_PX, maxIters=300
    )
    if similarity is None or not np.isfinite(similarity).all():
        return None, none
    return np.vstack([similarity, [0, 0, 1]]), mask.ravel() == 1


def _is_plausible(homography: Float64Array, width: int, height: int) -> bool:
    """Return whether a camera may move so between two frames."""
    x, y = np.array([0.25, 0.75, 0.75, 0.25]) * width, np.array([0.25, 0.25, 0.75, 0.75]) * height
    square = np.column_stack([x, y])
    moved = warp_points(homography, square)
    if not np.isfinite(moved).all():
        return False
    shift = np.abs((moved - square) / (width, height)).max()
    slopes = np.linalg.det(jacobians(homography, square))
    return bool(
        shift < _MAX_SHIFT and (slopes > _MAX_SCALE**-2).all() and slopes.max() < _MAX_SCALE**2
    )


def _reduced(image: UInt8Array) -> UInt8Array:
    height, width = image.shape[:2]
    part = min(_SIDE_PX / max(width, height), 1.0)
    size = max(round(width * part), 1), max(round(height * part), 1)
    # Of a larger image the mean of 2 x 2 pixels is enough, and faster than exact areas.
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if part < 1 else image
    grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY) if image.ndim == 3 else small
    return np.ascontiguousarray(grey)


def _with_new(grey: UInt8Array, kept: Float32Array) -> Float32Array:
    """Return corners (N, 2) and new ones that keep their distance from these."""
    if min(grey.shape) <= _WINDOW_PX:
        return kept
    half = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    mask = np.full(half.shape, 255, np.uint8)
    for x, y in (kept / 2).astype(int).tolist():
        cv2.circle(mask, (x, y), _SPACING_PX // 2, 0, -1)
    found = cv2.goodFeaturesToTrack(half, _CORNERS - len(kept), 0.01, _SPACING_PX / 2, mask=mask)
    if found is None:
        return kept
    return np.vstack([kept, found.reshape(-1, 2) * 2 + 0.5]).astype(np.float32)
