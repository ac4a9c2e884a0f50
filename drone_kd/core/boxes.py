"""Box arithmetic. Boxes are float32 (N, 4): x1, y1, x2, y2 unless a name says otherwise."""

from __future__ import annotations

import numpy as np

from drone_kd.core.arrays import Float32Array
from drone_kd.core.preprocess import Letterbox


def unletterbox(xyxy: Float32Array, placement: Letterbox, width: int, height: int) -> Float32Array:
    """Convert boxes from network pixels to pixels of a width x height image and clip them to it.

    `placement` is what `letterbox` returned for the image.
    """
    pad = np.array([placement.pad_x, placement.pad_y] * 2, np.float32)
    limit = np.array([width, height] * 2, np.float32)
    unscaled: Float32Array = (xyxy - pad) / np.float32(placement.scale)
    return np.clip(unscaled, np.float32(0), limit)


def intersection(first: Float32Array, second: Float32Array) -> Float32Array:
    """Return the (N, M) intersection areas of (N, 4) and (M, 4) boxes."""
    # One coordinate at a time: several times faster than arrays of shape (N, M, 2).
    ax1, ay1, ax2, ay2 = first.T[:, :, None]
    bx1, by1, bx2, by2 = second.T[:, None, :]
    width = np.minimum(ax2, bx2) - np.maximum(ax1, bx1)
    height = np.minimum(ay2, by2) - np.maximum(ay1, by1)
    overlap: Float32Array = np.maximum(width, 0) * np.maximum(height, 0)
    return overlap


def area(xyxy: Float32Array) -> Float32Array:
    """Return the (N,) areas of (N, 4) boxes."""
    x1, y1, x2, y2 = xyxy.T
    areas: Float32Array = (x2 - x1) * (y2 - y1)
    return areas


def iou(first: Float32Array, second: Float32Array) -> Float32Array:
    """Return the (N, M) IoU matrix of (N, 4) and (M, 4) boxes; 0 where the union is empty."""
    overlap = intersection(first, second)
    union = area(first)[:, None] + area(second)[None, :] - overlap
    ratio: Float32Array = np.zeros_like(overlap)
    np.divide(overlap, union, out=ratio, where=union > 0)
    return ratio
