"""Projection of world points into an image, and boxes of the visible parts of objects.

Image coordinates are continuous: pixel i covers i to i + 1, and its centre is at i + 0.5. A camera
is given by its position and its axes in the world: image right, image down and view, one per row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

MIN_SIDE_PX = 4.0
MIN_VISIBLE = 0.4
# Less of an object is in view as good as none.
MIN_PARTLY = 0.02
# Nearer points count as behind the camera.
NEAR_M = 0.1

# OpenCV's fixed point: sixteenths of a pixel.
SHIFT, _UNIT = 4, 16


def projection_matrix(axes: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Return the matrix (3, 3) that projects world points into the image.

    (point - camera position) @ matrix is (x px, y px, 1) times the depth in metres. `intrinsics`
    (3, 3) is K of camera_info, in pixels.
    """
    return axes.T @ intrinsics.T


def project(
    points: np.ndarray, position: np.ndarray, matrix: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Project world points (..., 3) to image points (..., 2) and depths (...,) in metres.

    Image points behind the camera are meaningless: check the depth.
    """
    rays = (points - position) @ matrix
    return flat(rays), rays[..., 2]


def flat(rays: np.ndarray) -> np.ndarray:
    """Convert homogeneous image points (..., 3) to image points (..., 2)."""
    return rays[..., :2] / np.maximum(rays[..., 2:], NEAR_M)


def fixed(px: np.ndarray) -> np.ndarray:
    """Convert image points to OpenCV's fixed point (int32), with integers at pixel centres."""
    return np.round((px - 0.5) * _UNIT).astype(np.int32, order="C")


def visible_box(
    extent: Sequence[float],
    outline: list[np.ndarray],
    hidden: np.ndarray,
    own: np.ndarray,
    hides: bool,
    min_visible: float = MIN_VISIBLE,
) -> tuple[float, ...] | None:
    """Return x0, y0, x1, y1 of the visible part of one object.

    None: a side is below MIN_SIDE_PX, or the visible share below `min_visible`.

    Args:
        extent: x0, y0, x1, y1 of the whole object.
        outline: fixed-point convex polygons (P, 2).
        hidden: uint8 (h, w), not 0 where something stands in front.
        own: uint8 (h, w), scratch buffer, 0 before and after.
        hides: add the object to `hidden`, because it may hide others.
        min_visible: least share of the object in view.
    """
    height, width = hidden.shape
    x0, y0 = max(extent[0], 0.0), max(extent[1], 0.0)
    x1, y1 = min(extent[2], float(width)), min(extent[3], float(height))
    cut = [x0, y0, x1, y1] != extent
    left, top = int(x0), int(y0)
    area = slice(top, math.ceil(y1)), slice(left, math.ceil(x1))
    front = hidden[area]
    # The outermost corner of an object that the frame cuts may be outside.
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
    if visible * cv2.countNonZero(seen) < min_visible * max(drawn, 1):
        return None
    x, y, w, h = cv2.boundingRect(seen)
    # An uncovered side keeps its fraction of a pixel.
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
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes of the visible parts of convex solids, which hide each other.

    Args:
        points: float64 (N, P, 3), world points whose hull each solid is; points may repeat.
        labelled: bool (N,); the other solids only hide.
        position: float64 (3,), of the camera.
        matrix: float64 (3, 3), of `projection_matrix`.
        width: image width in pixels.
        height: image height in pixels.

    Returns:
        Boxes float32 (K, 4), left, top, right, bottom in pixels, the indices of their solids,
        int64 (K,), near ones first, and which of them are visible to less than MIN_VISIBLE, bool
        (K,).
    """
    rays = (points - position) @ matrix
    distance = np.linalg.norm(points.mean(1) - position, axis=1)
    whole = flat(rays)
    before = rays[..., 2] > NEAR_M
    # Solids that reach behind the camera may be anywhere in the image.
    inside = (whole.max(1) > 0).all(1) & (whole.min(1) < (width, height)).all(1)
    near = before.any(1) & (inside | ~before.all(1))
    order = np.argsort(distance, kind="stable")
    hidden, own = np.zeros((2, height, width), np.uint8)
    boxes, index, partly = [], [], []
    for i in order[near[order]].tolist():
        px = _in_front(rays[i])
        low, high = px.min(0), px.max(0)
        if (high <= 0).any() or (low >= (width, height)).any():
            continue
        # Corners far outside would overflow the fixed point.
        hull = cv2.convexHull(px.clip(-16 * width, 16 * width).astype(np.float32))
        outline = [fixed(hull.reshape(-1, 2))]
        if labelled[i] and (high - low >= MIN_SIDE_PX).all():
            extent = [*low.tolist(), *high.tolist()]
            for least in (MIN_VISIBLE, MIN_PARTLY):
                box = visible_box(extent, outline, hidden, own, False, least)
                if box is not None:
                    boxes.append(box)
                    index.append(i)
                    partly.append(least < MIN_VISIBLE)
                    break
        # A solid without a box hides others, too.
        _fill(hidden, outline)
    xyxy = np.array(boxes, np.float32).reshape(-1, 4)
    return xyxy, np.array(index, np.int64), np.array(partly, bool)


def _in_front(rays: np.ndarray) -> np.ndarray:
    """Return image points (Q, 2) whose hull is the part of a solid in front of the camera."""
    before = rays[:, 2] > NEAR_M
    if before.all():
        return flat(rays)
    # Intersections of the lines between its points with the near plane.
    a, b = rays[before][:, None], rays[~before][None]
    share = (NEAR_M - a[..., 2:]) / (b[..., 2:] - a[..., 2:])
    return flat(np.concatenate([rays[before], (a + share * (b - a)).reshape(-1, 3)]))


def _fill(mask: np.ndarray, polygons: list[np.ndarray]) -> None:
    for polygon in polygons:
        cv2.fillConvexPoly(mask, polygon, 255, cv2.LINE_8, SHIFT)
