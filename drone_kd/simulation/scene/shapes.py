"""Polygons in metres on a square tile that repeats, and rasters that they fill."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

PX_PER_M = 10
TILE_PX = 2048
TILE_M = TILE_PX / PX_PER_M

_ANGLES = np.linspace(0, 2 * np.pi, 20, endpoint=False)
# float64 (20, 2), radius 1.
CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], -1)
# Fixed point of cv2.fillPoly: sixteenths of a pixel.
_SHIFT, _UNIT = 4, 16

# Polygons (K, P, 2) in metres, and the grey level or BGR colour that fills them.
Fill = tuple[np.ndarray, "int | tuple[int, ...]"]
# x0, y0, x1, y1 in metres.
Area = tuple[float, float, float, float]


def rectangle(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """Corners of an axis-aligned rectangle: float64 (4, 2)."""
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=float)


def disc(x: float, y: float, radius: float) -> np.ndarray:
    """A circle as a polygon: float64 (20, 2)."""
    return CIRCLE * radius + [x, y]


def blob(rng: np.random.Generator, x: float, y: float, radius: float) -> np.ndarray:
    """An irregular closed outline, such as that of a pond: float64 (20, 2)."""
    waves = (
        rng.normal(0, 0.12 / k) * np.cos(k * _ANGLES + rng.uniform(0, 6.3)) for k in (1, 2, 3, 5)
    )
    return CIRCLE * (radius * np.clip(1 + sum(waves), 0.5, 1.4))[:, None] + [x, y]


def strip(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """A straight strip from point a to point b: float64 (4, 2)."""
    along = (b - a) / max(np.hypot(*(b - a)), 1e-6)
    side = np.array([-along[1], along[0]]) * width / 2
    return np.stack([a - side, b - side, b + side, a + side])


def tile_ranges(start: int, stop: int, side: int) -> Iterator[tuple[slice, slice]]:
    """Yield the pieces of a range cut at the borders of tiles: slices of tile and of range."""
    for tile in range(start - start % side, stop, side):
        low, high = max(start, tile), min(stop, tile + side)
        yield slice(low - tile, high - tile), slice(low - start, high - start)


def fill_polygons(raster: np.ndarray, fills: Sequence[Fill]) -> None:
    """Fill polygons in order, in a uint8 raster of side TILE_PX with 1 or 3 channels.

    Parts beyond the tile wrap to its other side.
    """
    if not fills:
        return
    counts = np.concatenate([np.full(len(polygons), polygons.shape[1]) for polygons, _ in fills])
    values = [value for polygons, value in fills for _ in polygons]
    if not values:
        return
    px = np.concatenate([polygons.reshape(-1, 2) for polygons, _ in fills]) * PX_PER_M - 0.5
    ends = np.cumsum(counts)
    low = np.minimum.reduceat(px, ends - counts) // TILE_PX
    over = (np.maximum.reduceat(px, ends - counts) // TILE_PX - low).astype(int)
    fixed = np.round((px - np.repeat(low * TILE_PX, counts, 0)) * _UNIT).astype(np.int32)
    beyond = over.any(1).tolist()
    for k, polygon in enumerate(np.split(fixed, ends[:-1])):
        cv2.fillPoly(raster, [polygon], values[k], cv2.LINE_8, _SHIFT)
        if beyond[k]:
            for dx, dy in np.ndindex(*over[k] + 1):
                shifted = polygon - np.array([dx, dy], np.int32) * (TILE_PX * _UNIT)
                cv2.fillPoly(raster, [shifted], values[k], cv2.LINE_8, _SHIFT)


def random_sign(rng: np.random.Generator) -> int:
    """Return 1 or -1."""
    return 1 - 2 * int(rng.integers(2))
