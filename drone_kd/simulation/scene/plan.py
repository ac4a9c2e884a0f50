"""A world while it is laid out: ground materials, markings, buildings, trees and objects."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import cv2
import numpy as np

from drone_kd.simulation.scene import meshes, textures
from drone_kd.simulation.scene.buildings import house_corners, house_normals, shadow_polygons
from drone_kd.simulation.scene.roads import Road
from drone_kd.simulation.scene.shapes import (
    PX_PER_M,
    TILE_M,
    TILE_PX,
    Area,
    Fill,
    fill_polygons,
    tile_ranges,
)
from drone_kd.simulation.scene.weather import Weather
from drone_kd.simulation.scene.world import World

# Resolution of the coarse raster that keeps people out of vehicles.
_TAKEN_PER_M = 2


class WorldPlan:
    """Collects what a world consists of; `finish` renders it."""

    def __init__(self, seed: int, rng: np.random.Generator, weather: Weather) -> None:
        self._seed = seed
        self._streams: dict[str, np.random.Generator] = {}
        self.rng = rng
        self.weather = weather
        elevation = np.radians(rng.uniform(*weather.sun_deg))
        azimuth = rng.uniform(0, 2 * np.pi)
        flat = np.cos(elevation)
        self.sun = np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)])
        self._noise = textures.ground_noise(rng)
        self._taken = np.zeros((math.ceil(TILE_M * _TAKEN_PER_M),) * 2, np.uint8)
        self._objects: list[tuple[int, tuple[float, float, float], int, float, bool]] = []
        self._fills: list[Fill] = []
        self._marks: list[Fill] = []
        self._houses: list[tuple[float, ...]] = []
        self._trees: list[tuple[float, ...]] = []

    def fill(self, polygon: np.ndarray, *materials: str) -> None:
        """Cover a polygon (P, 2), in metres, with one of these materials."""
        one = len(materials) == 1
        material = materials[0 if one else self.rng.integers(len(materials))]
        self._fills.append((polygon[None], textures.MATERIAL_IDS[material] * 16))

    def mark(self, polygons: np.ndarray, rgb: Sequence[int] | np.ndarray) -> None:
        """Paint polygons (K, P, 2) in one RGB colour over all materials."""
        self._marks.append((polygons, tuple(map(int, rgb[::-1]))))

    def rows(self, area: Area, pitch_m: float, depth: float) -> None:
        """Add furrows or courses along a random axis of an area; `depth` in [0, 1]."""
        x0, y0, x1, y1 = area
        xs, ys = ((round(a * PX_PER_M), round(b * PX_PER_M)) for a, b in ((x0, x1), (y0, y1)))
        along = self.rng.random() < 0.5
        phase = 2 * np.pi * np.arange(*(xs if along else ys)) / (pitch_m * PX_PER_M)
        wave = (128 + 127 * np.sin(phase)).astype(np.uint8)
        for to_y, from_y in tile_ranges(*ys, TILE_PX):
            for to_x, from_x in tile_ranges(*xs, TILE_PX):
                patch = self._noise[to_y, to_x]
                stripes = wave[from_x] if along else wave[from_y, None]
                stripes = np.broadcast_to(stripes, patch.shape).copy()
                cv2.addWeighted(patch, 1 - depth, stripes, depth, 0, dst=patch)

    def stream(self, name: str) -> np.random.Generator:
        """Return the random numbers of a name: draws from it move no other draws."""
        if name not in self._streams:
            key = self._seed, zlib.crc32(name.encode())
            self._streams[name] = np.random.default_rng(key)
        return self._streams[name]

    def pick(self, kind: str, rng: np.random.Generator | None = None) -> int:
        """Return a random mesh of a kind of the library, by `rng` or that of the plan."""
        choice = meshes.library().ids[kind]
        return int(choice[0] + (rng or self.rng).integers(len(choice)))

    def stand(self, mesh: int, x: float, y: float, heading: float, optional: bool = True) -> None:
        """Place an object, unless a vehicle already stands there."""
        shapes = meshes.library()
        at_x, at_y = x % TILE_M * _TAKEN_PER_M, y % TILE_M * _TAKEN_PER_M
        if self._taken[int(at_y), int(at_x)]:
            return
        if shapes.length[mesh] > 3:
            width = shapes.width[mesh] * _TAKEN_PER_M
            # A thick line ends in half circles.
            half = (shapes.length[mesh] * _TAKEN_PER_M - width) / 2
            dx, dy = half * math.cos(heading), half * math.sin(heading)
            start, end = ((round(at_x + sign * dx), round(at_y + sign * dy)) for sign in (-1, 1))
            cv2.line(self._taken, start, end, 1, max(round(width), 1))
        self._objects.append((mesh, (x, y, heading), -1, 0.0, optional))

    def drive(self, mesh: int, road: int, s: float, lateral: float, speed: float) -> None:
        """Place an object that moves along a road, in the direction of -s if `speed` < 0."""
        self._objects.append((mesh, (s, lateral, -1 if speed < 0 else 1), road, speed, False))

    def tree(self, x: float, y: float, radius: float, height: float) -> None:
        """Add a tree with its shadow."""
        self._trees.append((x, y, radius, height, int(self.rng.integers(textures.TREES))))

    def building(
        self,
        centre: tuple[float, float],
        size: tuple[float, float],
        heading: float,
        height: float,
        ridge: float = 0,
    ) -> None:
        """Add a building with its shadow. Sizes in metres, heading in radians."""
        self._houses.append((*centre, *size, heading, height, ridge))

    def finish(self, roads: Sequence[Road]) -> World:
        """Render the ground and return the world."""
        rng = self.rng
        trees = np.array(self._trees, dtype=float).reshape(-1, 5)
        houses = house_corners(np.array(self._houses, dtype=float).reshape(-1, 7))
        shadow = np.zeros((TILE_PX, TILE_PX), np.uint8)
        # Sampled in every weather: the draws that follow are the same.
        shadows = list(shadow_polygons(rng, houses, trees, self.sun))
        if self.weather.shadows:
            fill_polygons(shadow, [(polygons, 255) for polygons in shadows])
        ground, shadow_gain = self._render_ground(shadow)
        objects = self._objects
        mesh_ids = np.array([row[0] for row in objects], dtype=np.int64)
        spread = houses - houses.mean(1, keepdims=True)
        normals = house_normals(houses)
        # The first half of the facades is for low houses.
        half = textures.FACADES // 2
        facades = rng.integers(half, size=len(houses))
        facades += np.where(houses[:, 4, 2] > 6.5, half, 0)
        return World(
            ground=ground,
            shadow=shadow,
            shadow_gain=shadow_gain,
            sun=self.sun,
            weather=self.weather,
            roads=tuple(roads),
            mesh_ids=mesh_ids,
            class_ids=meshes.library().class_ids[mesh_ids],
            place=np.array([row[1] for row in objects], dtype=float).reshape(-1, 3),
            road_ids=np.array([row[2] for row in objects], dtype=np.int64),
            speed=np.array([row[3] for row in objects], dtype=float),
            optional=np.array([row[4] for row in objects], dtype=bool),
            houses=houses,
            house_centres=houses.mean(1)[:, :2],
            house_radius=np.linalg.norm(spread, axis=-1).max(-1, initial=0),
            house_normals=normals,
            house_light=self._light(normals),
            house_textures=np.stack([rng.integers(textures.ROOFS, size=len(houses)), facades], 1),
            trees=trees,
            tree_textures=textures.sample(rng, textures.tree_bank(), textures.TREES),
            roof_textures=textures.sample(rng, textures.roof_bank(), textures.ROOFS),
            facade_textures=textures.sample(rng, textures.facade_bank(2), half)
            + textures.sample(rng, textures.facade_bank(5), half),
        )

    def _light(self, normals: np.ndarray) -> np.ndarray:
        """Return the brightness of surfaces with outward normals (..., 3)."""
        sunlit = np.clip(normals @ self.sun, 0, None)
        return self.weather.ambient + self.weather.direct * sunlit

    def _render_ground(self, shadow: np.ndarray) -> tuple[textures.Pyramid, float]:
        """Render the pyramid of World.ground; returns it with World.shadow_gain."""
        material = np.zeros((TILE_PX, TILE_PX), np.uint8)
        fill_polygons(material, self._fills)
        cv2.add(material, self._noise >> 4, dst=material)
        palette = textures.ground_palette(self.rng)
        ground = np.empty((TILE_PX, TILE_PX, 3), np.uint8)
        # In bands that fit the processor's cache.
        bands = [slice(y, y + 128) for y in range(0, TILE_PX, 128)]
        for band in bands:
            cv2.applyColorMap(material[band], palette, dst=ground[band])
        fill_polygons(ground, self._marks)
        shadow_gain = self.rng.uniform(*self.weather.shade)
        for band in bands:
            dark = cv2.convertScaleAbs(ground[band], alpha=shadow_gain)
            cv2.copyTo(dark, shadow[band], ground[band])
        return textures.pyramid(textures.four_channels(ground), levels=4), shadow_gain
