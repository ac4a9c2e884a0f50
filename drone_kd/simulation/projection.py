"""From places in the world to places in a picture, and how much of an object is seen there.

Image coordinates are continuous: pixel i covers i to i + 1, and its centre is at i + 0.5. A camera
has its position, and its axes in the world: image right, image down and view, one per row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

MIN_SIDE_PX = 4.0
MIN_VISIBLE = 0.4
# What is nearer is behind the camera.
NEAR_M = 0.1

# OpenCV's fixed point: sixteenths of a pixel.
SHIFT, _UNIT = 4, 16


def projection_matrix(axes: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """What turns a place in the world into one in the picture.

    Args:
        axes: float64 (3, 3), of the camera in the world.
        intrinsics: float64 (3, 3), K of camera_info, in pixels.

    Returns:
        float64 (3, 3): right-multiply rows of a point less the camera's position by it for
        (x px, y px, 1) times its depth in metres.
    """
    return axes.T @ intrinsics.T


def project(
    points: np.ndarray, position: np.ndarray, matrix: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """World points (..., 3) to image points (..., 2) and their depth (...,) in metres.

    The image point of what is behind the camera means nothing: look at its depth.
    """
    rays = (points - position) @ matrix
    return flat(rays), rays[..., 2]


def flat(rays: np.ndarray) -> np.ndarray:
    """Image points (..., 2) times their depth, with the depth, (..., 3): to image points."""
    return rays[..., :2] / np.maximum(rays[..., 2:], NEAR_M)


def fixed(px: np.ndarray) -> np.ndarray:
    """Image points to OpenCV's fixed point, whose whole numbers are pixel centres: int32."""
    return np.round((px - 0.5) * _UNIT).astype(np.int32, order="C")


def visible_box(
    extent: Sequence[float],
    outline: list[np.ndarray],
    hidden: np.ndarray,
    own: np.ndarray,
    hides: bool,
) -> tuple[float, ...] | None:
    """Bounds of what is visible of one object, or None where that is too little.

    Too little is a side of less than MIN_SIDE_PX, or a share of less than MIN_VISIBLE.

    Args:
        extent: x0, y0, x1, y1 without anything in front.
        outline: fixed-point convex polygons (P, 2).
        hidden: uint8 (h, w), not 0 where something stands in front; where the object `hides`
            others, it is added.
        own: uint8 (h, w), a blank sheet before and after.
    """
    height, width = hidden.shape
    x0, y0 = max(extent[0], 0.0), max(extent[1], 0.0)
    x1, y1 = min(extent[2], float(width)), min(extent[3], float(height))
    cut = [x0, y0, x1, y1] != extent
    left, top = int(x0), int(y0)
    area = slice(top, math.ceil(y1)), slice(left, math.ceil(x1))
    front = hidden[area]
    # Where the frame cuts an object, its outermost corner may be outside.
    if not cut and not cv2.countNonZero(front):
        if hides:
            _fill(hidden, outline)
        return x0, y0, x1, y1
    _fill(own, outline)
    shape = own[area]
    drawn = cv2.countNonZero(shape)
    seen = cv2.subtract(shape, front)
    shape[:] = 0
    visible = (x1 - x0) * (y1 - y0) / ((extent[2] - extent[0]) * (extent[3] - extent[1]))
    if visible * cv2.countNonZero(seen) < MIN_VISIBLE * max(drawn, 1):
        return None
    x, y, w, h = cv2.boundingRect(seen)
    # A side that nothing covers keeps its fraction of a pixel.
    x0, y0 = max(x0, left + x), max(y0, top + y)
    x1, y1 = min(x1, left + x + w), min(y1, top + y + h)
    if x1 - x0 < MIN_SIDE_PX or y1 - y0 < MIN_SIDE_PX:
        return None
    if hides:
        cv2.add(front, seen, dst=front)
    return x0, y0, x1, y1


def solid_boxes(
    points: np.ndarray,
    labelled: np.ndarray,
    position: np.ndarray,
    matrix: np.ndarray,
    width: int,
    height: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of what a camera sees of convex solids, near ones in front of far ones.

    Args:
        points: float64 (N, P, 3) in the world: what each solid is the hull of; a point may be
            there more than once.
        labelled: bool (N,); the others only stand in front.
        position: float64 (3,), of the camera.
        matrix: float64 (3, 3), of `projection_matrix`.
        width, height: of the picture in pixels.

    Returns:
        float32 (K, 4), left, top, right, bottom in pixels, and int64 (K,), which solids they are,
        near ones first.
    """
    rays = (points - position) @ matrix
    distance = np.linalg.norm(points.mean(1) - position, axis=1)
    whole = flat(rays)
    before = rays[..., 2] > NEAR_M
    # What reaches behind the camera may be anywhere; the rest is in the picture or not.
    inside = (whole.max(1) > 0).all(1) & (whole.min(1) < (width, height)).all(1)
    near = before.any(1) & (inside | ~before.all(1))
    order = np.argsort(distance, kind="stable")
    hidden, own = np.zeros((2, height, width), np.uint8)
    boxes, index = [], []
    for i in order[near[order]].tolist():
        px = _in_front(rays[i])
        low, high = px.min(0), px.max(0)
        if (high <= 0).any() or (low >= (width, height)).any():
            continue
        # Corners may be far outside, beyond what fixed point can hold.
        hull = cv2.convexHull(px.clip(-16 * width, 16 * width).astype(np.float32))
        outline = [fixed(hull.reshape(-1, 2))]
        if labelled[i] and (high - low >= MIN_SIDE_PX).all():
            box = visible_box([*low.tolist(), *high.tolist()], outline, hidden, own, False)
            if box is not None and min(box[2] - box[0], box[3] - box[1]) >= MIN_SIDE_PX:
                boxes.append(box)
                index.append(i)
        # However little is seen of it, it hides what is behind it.
        _fill(hidden, outline)
    return np.array(boxes, np.float32).reshape(-1, 4), np.array(index, np.int64)


def _in_front(rays: np.ndarray) -> np.ndarray:
    """Image points whose hull is what a solid, rays (P, 3), shows before the camera: (Q, 2)."""
    before = rays[:, 2] > NEAR_M
    if before.all():
        return flat(rays)
    # Where lines between its points come through the plane just before the camera.
    a, b = rays[before][:, None], rays[~before][None]
    share = (NEAR_M - a[..., 2:]) / (b[..., 2:] - a[..., 2:])
    return flat(np.concatenate([rays[before], (a + share * (b - a)).reshape(-1, 3)]))


def _fill(mask: np.ndarray, polygons: list[np.ndarray]) -> None:
    for polygon in polygons:
        cv2.fillConvexPoly(mask, polygon, 255, cv2.LINE_8, SHIFT)
