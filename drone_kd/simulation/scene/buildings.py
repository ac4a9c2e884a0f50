"""Geometry of buildings: corners, outward normals and the shadows that they cast."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from drone_kd.simulation.scene.shapes import CIRCLE

# Sides of a house by its corners: four walls, two gables, a flat roof or two slopes. Corners 0-3
# are on the ground, 4-7 at the eaves above them, 8 and 9 are the ends of the ridge.
HOUSE_SIDES = np.array(
    [
        *([4, 5, 1, 0], [5, 6, 2, 1], [6, 7, 3, 2], [7, 4, 0, 3]),
        *([4, 5, 8, 8], [6, 7, 9, 9], [4, 5, 6, 7], [4, 8, 9, 7], [5, 8, 9, 6]),
    ]
)

GABLES = (4, 5)


def house_corners(houses: np.ndarray) -> np.ndarray:
    """Compute the corners of houses, float64 (B, 10, 3), as in World.

    `houses` is float64 (B, 7): x, y, length, width, heading, height of the eaves, and height of
    the ridge above the eaves.
    """
    x, y, length, width, heading, height, ridge = houses.T[..., None]
    # Corners at half the length and width, the ends of the ridge in between.
    along = np.array([1, 1, -1, -1] * 2 + [1, -1]) * length / 2
    across = np.array([-1, 1, 1, -1] * 2 + [0, 0]) * width / 2
    sin, cos = np.sin(heading), np.cos(heading)
    z = height * np.repeat((0, 1), (4, 6)) + ridge * np.repeat((0, 1), (8, 2))
    return np.stack([x + along * cos - across * sin, y + along * sin + across * cos, z], -1)


def house_normals(houses: np.ndarray) -> np.ndarray:
    """Return the outward unit normals (B, 9, 3) of HOUSE_SIDES; 0 for a side that is missing."""
    a, b, c = (houses[:, HOUSE_SIDES[:, i]] for i in range(3))
    normals = np.cross(b - a, c - a)
    outwards = ((a - houses[:, None, :8].mean(2)) * normals).sum(-1, keepdims=True)
    normals *= np.sign(outwards) / np.maximum(
        np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9
    )
    saddle = houses[:, 8, 2] > houses[:, 4, 2]
    normals[saddle, 6] = 0
    normals[~saddle, 4:6] = 0
    normals[~saddle, 7:] = 0
    return normals


def shadow_polygons(
    rng: np.random.Generator, houses: np.ndarray, trees: np.ndarray, sun: np.ndarray
) -> Iterator[np.ndarray]:
    """Yield polygons (K, P, 2) of the ground that houses (B, 10, 3) and trees (M, 5) shade."""
    fall = sun[:2] / sun[2]
    fallen = (houses[..., :2] - houses[..., 2:] * fall).astype(np.float32)
    yield from (cv2.convexHull(points).reshape(1, -1, 2) for points in fallen)
    reach = trees[:, 2, None] * (0.93 + 0.07 * rng.standard_normal((len(trees), len(CIRCLE))))
    middle = trees[:, :2] - 0.65 * trees[:, 3, None] * fall
    yield CIRCLE * reach[..., None] + middle[:, None]
