"""A pinhole camera over the world.

Image coordinates are continuous: pixel i covers i to i + 1, and its centre is at i + 0.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from drone_kd.simulation.projection import project, projection_matrix
from drone_kd.simulation.scene.shapes import TILE_M

# Objects farther away than this are below a few pixels.
_VIEW_M = 500.0
_FAR_HEIGHTS = 7.0


@dataclass(frozen=True)
class Camera:
    """A pinhole camera over the world. Metres, radians and pixels."""

    x_m: float
    y_m: float
    height_m: float  # above the ground
    yaw: float  # direction of the upper image side, from north (-y) towards east
    pitch: float  # downward angle, above 0; pi / 2 is nadir
    roll: float  # rotation about the optical axis
    focal_px: float
    width: int
    height: int

    @cached_property
    def axes(self) -> np.ndarray:
        """World directions of image right, image down and view: float64 (3, 3), one per row."""
        sin_y, cos_y = math.sin(self.yaw), math.cos(self.yaw)
        sin_p, cos_p = math.sin(self.pitch), math.cos(self.pitch)
        right = np.array([cos_y, sin_y, 0.0])
        down = np.array([-sin_p * sin_y, sin_p * cos_y, -cos_p])
        view = np.array([cos_p * sin_y, -cos_p * cos_y, -sin_p])
        cos_r, sin_r = math.cos(self.roll), math.sin(self.roll)
        return np.stack([cos_r * right + sin_r * down, cos_r * down - sin_r * right, view])

    @property
    def position(self) -> np.ndarray:
        """float64 (3,), metres."""
        return np.array([self.x_m, self.y_m, self.height_m])

    @cached_property
    def projection(self) -> np.ndarray:
        """float64 (3, 3); see `drone_kd.simulation.projection.projection_matrix`."""
        f, cx, cy = self.focal_px, self.width / 2, self.height / 2
        return projection_matrix(self.axes, np.array([[f, 0, cx], [0, f, cy], [0, 0, 1]]))

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Project world points (..., 3) to image points (..., 2) and depths (...,) in metres."""
        return project(points, self.position, self.projection)

    @cached_property
    def to_ground(self) -> np.ndarray:
        """Homography (3, 3) from image points to the ground's x, y in metres."""
        back = np.array([[1, 0, -self.width / 2], [0, 1, -self.height / 2], [0, 0, self.focal_px]])
        rays = self.axes.T @ back
        # A ray meets the ground once it has descended by the camera's height.
        x = self.x_m * -rays[2] + self.height_m * rays[0]
        y = self.y_m * -rays[2] + self.height_m * rays[1]
        return np.stack([x, y, -rays[2]])

    @property
    def limit_m(self) -> float:
        """Distance over the ground up to which a view that `reaches_far` shows objects."""
        return max(_VIEW_M, _FAR_HEIGHTS * self.height_m)

    @cached_property
    def reaches_far(self) -> bool:
        """The horizon, or ground more than 7 times as far as high, is in the image."""
        xy, down = self._footprint(1)
        return bool((down <= 0).any()) or self._distance(xy).max() > _FAR_HEIGHTS * self.height_m

    def ground_bounds(self) -> np.ndarray:
        """Return lowest and highest x, y in metres of the ground in view: float64 (2, 2).

        Ground beyond `limit_m` is left out of a view that `reaches_far`.
        """
        xy, down = self._footprint(16 if self.reaches_far else 1)
        if self.reaches_far:
            # A direction that meets no ground within the limit ends at the limit.
            offset = (xy - self.position[:2]) * np.sign(down)[:, None]
            distance = np.where(down > 0, np.hypot(*offset.T), np.inf)
            shrink = self.limit_m / np.maximum(np.hypot(*offset.T), 1e-9)
            shrink[distance < self.limit_m] = 1
            xy = self.position[:2] + offset * shrink[:, None]
        return np.stack([xy.min(0), xy.max(0)])

    def _footprint(self, pieces: int) -> tuple[np.ndarray, np.ndarray]:
        """Return where the rays of the image's border meet the ground, and how far they descend.

        Each side has `pieces` points. Rays that do not descend (values of 0 or less) meet the
        ground behind the camera.
        """
        w, h = self.width, self.height
        corners = np.array([[0, 0], [w, 0], [w, h], [0, h]], float)
        share = np.arange(pieces)[:, None] / pieces
        sides = [
            a + (b - a) * share for a, b in zip(corners, np.roll(corners, -1, 0), strict=True)
        ]
        border = np.concatenate(sides)
        rays = np.column_stack([border, np.ones(len(border))]) @ self.to_ground.T
        down = np.where(rays[:, 2] == 0, -1e-12, rays[:, 2])
        return rays[:, :2] / down[:, None], down

    def _distance(self, xy: np.ndarray) -> np.ndarray:
        return np.asarray(np.hypot(*(xy - self.position[:2]).T))


def copies_in(xy: np.ndarray, bounds: np.ndarray, margin_m: float) -> tuple[np.ndarray, ...]:
    """Return the repeated copies of points (N, 2) within bounds and a margin.

    Which point, int64 (K,); x, y in metres, float64 (K, 2); the tile of the copy, int64 (K, 2).
    """
    low, high = bounds[0] - margin_m, bounds[1] + margin_m
    first = np.ceil((low - xy) / TILE_M)
    steps = np.indices(np.ceil((high - low) / TILE_M).astype(int)).reshape(2, -1).T
    tiles = first[:, None] + steps
    places = xy[:, None] + tiles * TILE_M
    index, copy = np.nonzero((places <= high).all(-1))
    return index, places[index, copy], tiles[index, copy].astype(np.int64)


def in_view(
    camera: Camera, points: np.ndarray, radius_m: np.ndarray | float, min_px: float
) -> np.ndarray:
    """Select points (K, 3) whose surroundings reach into the image: bool (K,).

    Surroundings below a radius of `min_px` in the image are left out.
    """
    px, depth = camera.project(points)
    reach = camera.focal_px * radius_m / np.maximum(depth, 0.1)
    inside = (px > -reach[:, None]) & (px < [camera.width, camera.height] + reach[:, None])
    return inside.all(1) & (depth > 2) & (reach > min_px)
