# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a frame looks like, cheaply: is it new, and how did the camera move?

Thumbnails are uint8 (64, 64) grey; embeddings float32 (80,), of distances between 0 and about 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import cv2
import numpy as np

from drone_kd_training.mining.flights import Frame

THUMBNAIL = 64
# Two frames are nearly the same if fewer cells of their thumbnails than this share differ by more
# than these grey levels: a cell is a few pixels, so that one small car that moved counts.
_SAME_SHARE, _SAME_LEVELS = 0.001, 8
_GRID = 4


class Glance(NamedTuple):
    """A frame that is kept, with what was seen of it in passing.

    `shift`: by how much of its width and height the scene moved since the last kept frame of the
    same block, (x, y); None for the first one.
    """

    frame: Frame
    embedding: np.ndarray
    shift: tuple[float, float] | None


def thin(frames: Iterable[Frame]) -> Iterator[Glance]:
    """Leave out frames that are nearly the same as the last one that was kept in their block."""
    last, block = None, None
    for frame in frames:
        thumb = thumbnail(frame.image)
        if frame.block != block:
            last, block = None, frame.block
        if last is not None and nearly_same(last, thumb):
            continue
        shift = None
        if last is not None:
            (x, y), _ = cv2.phaseCorrelate(last.astype(np.float32), thumb.astype(np.float32))
            shift = x / THUMBNAIL, y / THUMBNAIL
        last = thumb
        yield Glance(frame, embed(frame.image), shift)


def thumbnail(image: np.ndarray) -> np.ndarray:
    """A picture, uint8 (h, w, 3) BGR, as its thumbnail."""
    small = cv2.resize(image, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)


def nearly_same(a: np.ndarray, b: np.ndarray) -> bool:
    """Tell whether two thumbnails show the same."""
    return np.count_nonzero(cv2.absdiff(a, b) > _SAME_LEVELS) <= _SAME_SHARE * a.size


def embed(image: np.ndarray) -> np.ndarray:
    """Where a picture, uint8 (h, w, 3) BGR, has which colours and how much texture.

    The mean of L, a, b, their spread in L, and the mean gradient, in each cell of a grid: crude,
    but a picture of another place, light or height is far away, and it costs next to nothing.
    """
    side = _GRID * 16
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_BGR2LAB) / 100
    light = lab[..., 0]
    gradient = np.hypot(np.gradient(light, axis=0), np.gradient(light, axis=1))
    planes = np.dstack([lab, gradient])
    cells = planes.reshape(_GRID, 16, _GRID, 16, 4).transpose(0, 2, 1, 3, 4).reshape(-1, 256, 4)
    means = cells.mean(axis=1)
    spread = cells[..., 0].std(axis=1)
    found = np.column_stack([means, spread]).ravel()
    return (found / np.sqrt(_GRID**2)).astype(np.float32)
