"""A rendered world: ground rasters, buildings, trees and objects with their poses.

The world is a square tile that repeats in both directions, so that no camera sees its end.
World axes in metres: x east, y south, z up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drone_kd.simulation.scene.roads import Road

# Light of a surface: ambient, and direct where the sun meets it at a right angle.
AMBIENT, DIRECT = 0.55, 0.6


@dataclass(frozen=True, eq=False)
class World:
    """A place, independent of cameras and time.

    Attributes:
        ground: uint8 (n, n, 3) BGR rasters of the tile, each half the size of the one before.
        shadow: uint8 (TILE_PX, TILE_PX), 255 where a house or tree shades the ground.
        shadow_gain: brightness of the ground in a shadow relative to sunlight.
        sun: float64 (3,), unit vector towards the sun.
        roads: the roads that `road_ids` refers to.
        mesh_ids: int64 (N,), index into the library of meshes, per object.
        class_ids: int64 (N,) of the objects, NO_CLASS for unlabelled ones.
        place: float64 (N, 3): x, y, heading of standing objects; s, lateral, direction (1 or -1)
            of objects on a road.
        road_ids: int64 (N,), -1 for standing objects.
        speed: float64 (N,), m/s along +s.
        optional: bool (N,), present on some days only.
        houses: float64 (B, 10, 3): corners on the ground, at the eaves, and ends of the ridge.
        house_centres: float64 (B, 2), x, y.
        house_radius: float64 (B,), metres from the centre to the farthest corner.
        house_normals: float64 (B, 9, 3), outward, of HOUSE_SIDES; 0 for a side that is missing.
        house_light: float64 (B, 9), brightness of these sides.
        house_textures: int64 (B, 2): index of its roof and of its facade.
        trees: float64 (M, 5): x, y, crown radius, height, index of its texture.
        tree_textures: uint8 (h, w, 4) BGRA, in pyramids.
        roof_textures, facade_textures: uint8 (h, w, 3) BGR, in pyramids down to one or two pixels.
        colours: float64 (P, 5, 3) RGB of the library's parts; None: those of the library.
    """

    ground: tuple[np.ndarray, ...]
    shadow: np.ndarray
    shadow_gain: float
    sun: np.ndarray
    roads: tuple[Road, ...]
    mesh_ids: np.ndarray
    class_ids: np.ndarray
    place: np.ndarray
    road_ids: np.ndarray
    speed: np.ndarray
    optional: np.ndarray
    houses: np.ndarray
    house_centres: np.ndarray
    house_radius: np.ndarray
    house_normals: np.ndarray
    house_light: np.ndarray
    house_textures: np.ndarray
    trees: np.ndarray
    tree_textures: tuple[tuple[np.ndarray, ...], ...]
    roof_textures: tuple[tuple[np.ndarray, ...], ...]
    facade_textures: tuple[tuple[np.ndarray, ...], ...]
    colours: np.ndarray | None = None

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
