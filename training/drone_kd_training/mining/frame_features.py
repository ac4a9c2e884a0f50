# SPDX-License-Identifier: AGPL-3.0-or-later
"""Cheap image features: near-duplicate removal, camera motion and an image descriptor.

Thumbnails are uint8 (64, 64) grey; embeddings float32 (80,) with distances of 0 to about 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import cv2
import numpy as np

from drone_kd_training.mining.flights import Frame

THUMBNAIL = 64
# Two frames are near duplicates if at most this share of their thumbnails' cells differs by more
# than these grey levels: a cell is a few pixels, so that one small car that moved counts.
_SAME_SHARE, _SAME_LEVELS = 0.001, 8
_GRID = 4


class FrameFeatures(NamedTuple):
    """A frame that is kept, and its descriptor, see `embed`.

    ``shift``: (x, y) motion of the scene since the last kept frame of the same block, as shares of
    width and height; None for the first one.
    """

    frame: Frame
    embedding: np.ndarray
    shift: tuple[float, float] | None


def drop_near_duplicates(frames: Iterable[Frame]) -> Iterator[FrameFeatures]:
    """Yield the frames that differ from the last one kept in their block, with features."""
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
        yield FrameFeatures(frame, embed(frame.image), shift)


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Return the thumbnail of a BGR uint8 (h, w, 3) image."""
    small = cv2.resize(image, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)


def nearly_same(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether two thumbnails are near duplicates."""
    return bool(np.count_nonzero(cv2.absdiff(a, b) > _SAME_LEVELS) <= _SAME_SHARE * a.size)


def embed(image: np.ndarray) -> np.ndarray:
    """Return the descriptor of a BGR uint8 (h, w, 3) image: colour and texture on a grid.

    Each cell has the mean of L, a and b, the mean gradient and the spread of L. It is crude and
    costs next to nothing, but images of another place, light or height are far apart.
    """
    side = _GRID * 16
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_BGR2LAB) / 100
    light = lab[..., 0]
    gradient = np.hypot(np.gradient(light, axis=0), np.gradient(light, axis=1))
    planes = np.dstack([lab, gradient])
    cells = planes.reshape(_GRID, 16, _GRID, 16, 4).transpose(0, 2, 1, 3, 4).reshape(-1, 256, 4)
    found = np.column_stack([cells.mean(axis=1), cells[..., 0].std(axis=1)]).ravel()
    return (found / np.sqrt(_GRID**2)).astype(np.float32)
