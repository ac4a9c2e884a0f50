"""A world as a thermal camera shows it at night."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from drone_kd.simulation.scene import meshes
from drone_kd.simulation.scene.textures import Pyramid
from drone_kd.simulation.scene.world import World


def as_thermal(world: World) -> World:
    """Return a world as a thermal camera shows it: people and vehicles are bright.

    Build it in a weather without shadows, or the sun's stay on the ground.
    """
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
    # Everything is in shadow: `render` then uses ambient light alone.
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
