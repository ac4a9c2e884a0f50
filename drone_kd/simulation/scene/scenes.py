"""Named scenes for rehearsals: what is built there, and the road that the drone follows."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from drone_kd.simulation.scene import meshes
from drone_kd.simulation.scene.roads import Road
from drone_kd.simulation.scene.shapes import TILE_M
from drone_kd.simulation.scene.textures import Pyramid
from drone_kd.simulation.scene.town import Layout, build_world
from drone_kd.simulation.scene.world import World

_MIDDLE = TILE_M / 2


def _road(
    vertical: bool, lanes: int, sidewalk_m: float, amplitude_m: float = 0.0, lane_m: float = 3.3
) -> Road:
    return Road(vertical, _MIDDLE, amplitude_m, 0.0, lanes, lane_m, sidewalk_m)


# The first road of each runs north-south: the drone follows it.
_LAYOUTS = {
    "highway": Layout(
        "rural",
        {"field": 6, "forest": 3, "houses": 2, "industry": 1},
        (_road(True, 3, 0.0, amplitude_m=5.0, lane_m=3.6),),
        speed_mps=(20.0, 34.0),
    ),
    "crossing": Layout(
        "town",
        {"flats": 4, "houses": 2, "car_park": 2, "park": 2, "plaza": 4},
        (_road(True, 2, 3.5), _road(False, 2, 3.5)),
    ),
    "car-park": Layout(
        "suburb",
        {"car_park": 8, "flats": 1, "park": 1},
        (_road(True, 1, 2.0), _road(False, 1, 2.0)),
    ),
    "forest-edge": Layout(
        "rural",
        {"forest": 5, "field": 3, "park": 3, "yard": 1},
        (_road(True, 1, 0.0, amplitude_m=8.0),),
    ),
    "night": Layout(
        "suburb",
        {"houses": 4, "flats": 2, "car_park": 3, "park": 3},
        (_road(True, 2, 2.5), _road(False, 1, 2.5)),
    ),
}
SCENES = tuple(_LAYOUTS)


def build_scene(scene: str, seed: int) -> World:
    """Build one of SCENES; the same arguments give the same world.

    Raises:
        ValueError: unknown scene.
    """
    if scene not in _LAYOUTS:
        raise ValueError(f"scene: expected one of {', '.join(SCENES)}, got {scene!r}")
    world = build_world(seed, _LAYOUTS[scene])
    return as_thermal(world) if scene == "night" else world


def as_thermal(world: World) -> World:
    """Return the place as a thermal camera shows it at night: people and vehicles are bright."""
    shapes = meshes.library()
    grey = shapes.colours.mean(-1)
    owner = np.repeat(np.arange(len(shapes.count)), shapes.count)
    kind = shapes.class_ids[owner]
    # Engines are warm or cold.
    warmth = np.random.default_rng(0).uniform(0, 1, len(shapes.count))[owner]
    heat = 60 + 0.35 * grey  # neither alive nor with an engine
    vehicle = np.isin(kind, (meshes.CAR, meshes.TRUCK, meshes.BUS))
    heat[vehicle] = (95 + 90 * warmth[:, None] + 0.3 * grey)[vehicle]
    heat[kind == meshes.PERSON] = 330
    # Everything is in shadow: `render` then uses AMBIENT light and draws no further shadows.
    return replace(
        world,
        ground=tuple(_flatten(level, 0.3, 28) for level in world.ground),
        shadow=np.full_like(world.shadow, 255),
        house_light=np.full_like(world.house_light, 0.8),
        roof_textures=_each(world.roof_textures, 0.25, 30),
        facade_textures=_each(world.facade_textures, 0.35, 45),
        tree_textures=_each(world.tree_textures, 0.2, 45),
        colours=np.where(np.isnan(shapes.colours), np.nan, heat[..., None]),
    )


def _each(pyramids: tuple[Pyramid, ...], gain: float, offset: float) -> tuple[Pyramid, ...]:
    return tuple(tuple(_flatten(level, gain, offset) for level in levels) for levels in pyramids)


def _flatten(image: np.ndarray, gain: float, offset: float) -> np.ndarray:
    """Convert an image (h, w, 3 or 4) to grey of less contrast, and keep its transparency."""
    grey = cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2GRAY)
    grey3 = cv2.cvtColor(cv2.convertScaleAbs(grey, alpha=gain, beta=offset), cv2.COLOR_GRAY2BGR)
    return np.dstack([grey3, image[..., 3]]) if image.shape[2] == 4 else np.asarray(grey3)
