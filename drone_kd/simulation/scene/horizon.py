"""Ground and sky of a view that reaches far, up to the horizon and beyond."""

from __future__ import annotations

import cv2
import numpy as np

from drone_kd.simulation.scene.camera import Camera
from drone_kd.simulation.scene.shapes import PX_PER_M, TILE_M
from drone_kd.simulation.scene.world import World

# The sky's colour changes from the horizon up to this sine of the elevation.
_SKY_SINE = 0.5


def ground_and_sky(world: World, camera: Camera) -> np.ndarray:
    """Render ground and sky: uint8 (h, w, 3) BGR.

    Far ground fades to its mean colour, which hides that the world repeats, and to that of the
    horizon by the visibility of the weather.
    """
    width, height = camera.width, camera.height
    to_ground = camera.to_ground.copy()
    # From below the camera, so that float32 is precise enough anywhere.
    to_ground[:2] -= np.outer([camera.x_m, camera.y_m], to_ground[2])
    columns = (np.arange(width) + 0.5)[None]
    rows = (np.arange(height) + 0.5)[:, None]
    x, y, down = (
        (a * columns + (b * rows + c)).astype(np.float32) for a, b, c in to_ground.tolist()
    )
    below = down > 1e-4 * camera.focal_px
    depth = np.where(below, down, np.float32(np.inf))
    x, y = x / depth, y / depth
    image = np.empty((height, width, 4), np.uint8)
    middle = width // 2
    distance = np.hypot(x, y)
    levels = _levels(camera, np.where(below, distance, np.inf)[:, middle], len(world.ground))
    edges = np.flatnonzero(np.diff(levels)) + 1
    for first, last in zip([0, *edges], [*edges, height], strict=True):
        tile = world.ground[levels[first]]
        px_per_m = np.float32(len(tile) / TILE_M)
        px = (x[first:last] + np.float32(camera.x_m % TILE_M)) * px_per_m - 0.5
        py = (y[first:last] + np.float32(camera.y_m % TILE_M)) * px_per_m - 0.5
        band, wrap = image[first:last], cv2.BORDER_WRAP
        cv2.remap(tile, px, py, cv2.INTER_LINEAR, dst=band, borderMode=wrap)
    image = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGRA2BGR))
    far = np.flatnonzero((~below | (distance > camera.limit_m / 2)).any(1))
    if len(far):
        top = slice(far[0], far[-1] + 1)
        _fade(image[top], world, camera, np.where(below, distance, np.inf)[top], down[top])
    return image


def _levels(camera: Camera, distance: np.ndarray, count: int) -> np.ndarray:
    """Return the pyramid level of each row (h,) from the distance of its middle."""
    slant = np.hypot(distance, camera.height_m)
    # Geometric mean of metres per pixel across and along the view.
    gsd = slant / camera.focal_px * np.sqrt(slant / camera.height_m)
    level = np.log2(np.minimum(gsd * PX_PER_M, 2.0**count)) + 0.3
    return np.clip(level, 0, count - 1).astype(int)


def _fade(
    image: np.ndarray, world: World, camera: Camera, distance: np.ndarray, down: np.ndarray
) -> None:
    """Blend rows with what is far: ground (h, w) in metres, infinite where there is sky."""
    # Colours hardly change along a row: few columns, linear in between.
    size = image.shape[1], image.shape[0]
    columns = np.linspace(0, size[0] - 1, 33).astype(int)
    distance, down = distance[:, columns], down[:, columns]
    horizon, zenith = (np.array(colour, np.float32) for colour in world.weather.sky_bgr)
    mean = world.ground[-1][..., :3].mean((0, 1)).astype(np.float32)
    start = camera.limit_m / 2
    plain = np.clip((distance - start) / (camera.limit_m - start), 0, 1)
    clear = np.exp(-np.maximum(distance - start, 0) / world.weather.visibility_m)
    kept = ((1 - plain) * clear).astype(np.float32)
    up = np.clip(-down / camera.focal_px / _SKY_SINE, 0, 1)[..., None]
    added = (plain * clear)[..., None] * mean + (1 - clear)[..., None] * horizon
    added = added + np.isinf(distance)[..., None] * (zenith - horizon) * up
    gain = cv2.merge([cv2.resize(kept, size)] * 3)
    blended = cv2.multiply(image, gain, dtype=cv2.CV_32F)
    blended = cv2.add(blended, cv2.resize(added.astype(np.float32), size))
    np.copyto(image, blended, casting="unsafe")
