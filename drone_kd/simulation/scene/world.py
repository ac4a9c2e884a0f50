"""A rendered world: ground rasters, buildings, trees and objects with their poses.

The world is a square tile that repeats in both directions, so that no camera sees its end.
World axes in metres: x east, y south, z up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drone_kd.simulation.scene.roads import Road
from drone_kd.simulation.scene.textures import Pyramid
from drone_kd.simulation.scene.weather import Weather


@dataclass(frozen=True, eq=False)
class World:
    """A place, independent of cameras and time, with N objects, B houses and M trees."""

    ground: Pyramid  # uint8 (n, n, 4) BGRA rasters of the tile
    shadow: np.ndarray  # uint8 (TILE_PX, TILE_PX), 255 where a house or tree shades the ground
    shadow_gain: float  # brightness of the ground in a shadow relative to sunlight
    sun: np.ndarray  # float64 (3,), unit vector towards the sun
    weather: Weather
    roads: tuple[Road, ...]
    mesh_ids: np.ndarray  # int64 (N,), index into the library of meshes
    class_ids: np.ndarray  # int64 (N,), NO_CLASS for unlabelled objects
    # float64 (N, 3): x, y, heading of standing objects; s, lateral, direction (1 or -1) on a road.
    place: np.ndarray
    road_ids: np.ndarray  # int64 (N,), index into `roads`, -1 for standing objects
    speed: np.ndarray  # float64 (N,), m/s along +s
    optional: np.ndarray  # bool (N,), present on some days only
    houses: np.ndarray  # float64 (B, 10, 3): corners on the ground and at the eaves, ridge ends
    house_centres: np.ndarray  # float64 (B, 2), x, y
    house_radius: np.ndarray  # float64 (B,), metres from the centre to the farthest corner
    house_normals: np.ndarray  # float64 (B, 9, 3), outward, of HOUSE_SIDES; 0: side is missing
    house_light: np.ndarray  # float64 (B, 9), brightness of these sides
    house_textures: np.ndarray  # int64 (B, 2): index of its roof and of its facade
    trees: np.ndarray  # float64 (M, 5): x, y, crown radius, height, index of its texture
    tree_textures: tuple[Pyramid, ...]  # uint8 (h, w, 4) BGRA
    roof_textures: tuple[Pyramid, ...]  # uint8 (h, w, 4) BGRA, down to one or two pixels
    facade_textures: tuple[Pyramid, ...]  # the same
    colours: np.ndarray | None = None  # float64 (P, 5, 3) RGB per part; None: the library's

    def poses(self, t_s: float) -> np.ndarray:
        """Where every object is at time `t_s`: float64 (N, 3), x, y, heading; not tile_ranges."""
        poses = self.place.copy()
        for i, road in enumerate(self.roads):
            on = self.road_ids == i
            s, lateral, direction = self.place[on].T
            s = s + self.speed[on] * t_s
            poses[on, :2] = road.points(s, lateral)
            poses[on, 2] = road.heading(s) + np.where(direction < 0, np.pi, 0)
        return poses
