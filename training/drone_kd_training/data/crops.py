# SPDX-License-Identifier: AGPL-3.0-or-later
"""Training windows: images that are larger than the student's input, cut into pieces."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from drone_kd.text import one_line

# Input of a teacher, side of a window, in pixels.
MIN_SIDE, MAX_SIDE = 32, 8192
# A window shows an object if at least this share of its box is inside.
INSIDE = 0.3


@dataclass(frozen=True)
class Crops:
    """Training windows of images that are larger than the student's input.

    ``size`` is the side of a window in pixels, at least 32; images are resized by each of
    ``scales`` first, in (0, 2]. Every n-th window is used, and every n-th of those without an
    object.
    """

    size: int
    scales: tuple[float, ...] = (1.0,)
    every: int = 1
    empty_every: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        whole = all(type(n) is int for n in (self.size, self.every, self.empty_every))
        if not whole or min(self.every, self.empty_every) < 1 or not 1 <= len(self.scales) <= 100:
            raise ValueError("expected whole numbers, some scales, every ≥ 1 and empty_every ≥ 1")
        if not MIN_SIDE <= self.size <= MAX_SIDE:
            raise ValueError(f"expected size ≥ {MIN_SIDE} and ≤ {MAX_SIDE}, got {self.size}")
        if not all(0 < scale <= 2 for scale in self.scales):
            shown = one_line(list(self.scales), 60)
            raise ValueError(f"expected scales above 0 and at most 2, got {shown}")


def views(
    image: np.ndarray, crops: Crops | None
) -> Iterator[tuple[str, np.ndarray | None, tuple[float, float, float, float]]]:
    """Yield the windows of an image to train on; without `crops` the whole image.

    Yields:
        A suffix for the file name, BGR uint8 pixels (None: the file itself), and the window
        (x1, y1, x2, y2) in [0, 1] of the image.
    """
    if crops is None:
        yield "", None, (0.0, 0.0, 1.0, 1.0)
        return
    for scale in crops.scales:
        if scale * min(image.shape[:2]) < 1:
            continue  # nothing would be left
        scaled = image
        if scale != 1:
            how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            scaled = cv2.resize(image, None, fx=scale, fy=scale, interpolation=how)
        height, width = scaled.shape[:2]
        for y1, y2 in _spans(height, crops.size):
            for x1, x2 in _spans(width, crops.size):
                window = (x1 / width, y1 / height, x2 / width, y2 / height)
                yield f"-{scale:.2f}-{x1}-{y1}.jpg", scaled[y1:y2, x1:x2], window


def _spans(length: int, size: int) -> list[tuple[int, int]]:
    """Return the fewest evenly spaced windows of ``size`` that cover ``length``."""
    size = min(size, length)
    starts = np.linspace(0, length - size, math.ceil(length / size)).round().astype(int)
    return [(int(start), int(start) + size) for start in starts]


def boxes_inside(table: np.ndarray, window: tuple[float, float, float, float]) -> np.ndarray:
    """Return the rows with boxes (first four columns) in a window, clipped and relative to it."""
    x1, y1, x2, y2 = window
    clipped = np.clip(table[:, :4], [x1, y1, x1, y1], [x2, y2, x2, y2])
    area, inside = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (table[:, :4], clipped))
    kept = (inside > INSIDE * area) & (area > 0)
    boxes = (clipped[kept] - [x1, y1, x1, y1]) / [x2 - x1, y2 - y1, x2 - x1, y2 - y1]
    return np.concatenate([boxes, table[kept, 4:]], axis=1)
