"""Rendered images of a world, with exact boxes of the visible objects."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from drone_kd.simulation.projection import MIN_SIDE_PX
from drone_kd.simulation.scene.camera import Camera
from drone_kd.simulation.scene.horizon import ground_and_sky
from drone_kd.simulation.scene.objects import draw_objects
from drone_kd.simulation.scene.obstacles import obstacle_layer
from drone_kd.simulation.scene.shapes import PX_PER_M, tile_ranges
from drone_kd.simulation.scene.world import World

# Enlarging the ground further costs details and saves little.
_MAX_STEP = 4


@dataclass(frozen=True, eq=False)
class View:
    """A rendered image with its ground truth.

    Attributes:
        image: uint8 (h, w, 3) BGR.
        xyxy: float32 (N, 4): left, top, right, bottom in pixels, within the image, of the visible
            part of each object without its shadow.
        class_ids: int64 (N,), index into CLASSES.
        ids: int64 (N,), track ids, constant per object in all views of a world.
    """

    image: np.ndarray
    xyxy: np.ndarray
    class_ids: np.ndarray
    ids: np.ndarray


def render(world: World, camera: Camera, t_s: float, present: np.ndarray | None = None) -> View:
    """Render the world at one time.

    Objects smaller than MIN_SIDE_PX or visible to less than MIN_VISIBLE are neither rendered nor
    labelled. `present`, bool (number of objects,), leaves objects out; None: all are present.
    """
    bounds = camera.ground_bounds()
    far = camera.reaches_far
    image = ground_and_sky(world, camera) if far else _ground(world, camera, bounds)
    layer, mask = obstacle_layer(world, camera, bounds)
    xyxy, class_ids, ids = draw_objects(image, world, camera, bounds, t_s, present, mask)
    cv2.copyTo(layer, mask, image)
    return View(image, xyxy, class_ids, ids)


def roll(view: View, shift_px: np.ndarray) -> View:
    """Apply a rolling shutter, which reads the rows from top to bottom.

    `shift_px`, float64 (2,), is how far the scene moves while the frame is read.
    """
    height, width = view.image.shape[:2]
    # Row y shows the scene moved by shift * y / height.
    stretch = 1 / (1 - np.clip(shift_px[1] / height, -0.5, 0.5))
    matrix = np.array([[1, stretch * shift_px[0] / height, 0], [0, stretch, 0]])
    image = cv2.warpAffine(view.image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
    x0, y0, x1, y1 = view.xyxy.T.astype(np.float64)
    corners = np.stack([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]).transpose(2, 0, 1)
    moved = corners @ matrix[:, :2].T
    size = width, height
    xyxy = np.hstack([moved.min(1).clip(0, size), moved.max(1).clip(0, size)]).astype(np.float32)
    kept = (xyxy[:, 2:] - xyxy[:, :2] >= MIN_SIDE_PX).all(1)
    return View(np.asarray(image), xyxy[kept], view.class_ids[kept], view.ids[kept])


def _ground(world: World, camera: Camera, bounds: np.ndarray) -> np.ndarray:
    """Render the ground in view: uint8 (h, w, 3) BGR."""
    gsd = camera.height_m / np.sin(camera.pitch) / camera.focal_px
    level = int(np.clip(np.log2(max(gsd * PX_PER_M, 1e-3)) + 0.3, 0, len(world.ground) - 1))
    scale = PX_PER_M / 2**level
    first = np.floor(bounds[0] * scale).astype(int) - 1
    last = np.ceil(bounds[1] * scale).astype(int) + 2
    to_raster = np.array([[scale, 0, -0.5 - first[0]], [0, scale, -0.5 - first[1]], [0, 0, 1]])
    matrix = to_raster @ camera.to_ground
    # Where a raster's pixel covers several of the image, fewer are computed and then enlarged.
    width, height = camera.width, camera.height
    step = int(np.clip(_pixel_side(matrix, width, height), 1, _MAX_STEP))
    size = math.ceil(width / step), math.ceil(height / step)
    # Homographies of OpenCV map the centres of pixels, which are at i there.
    matrix = matrix @ np.array([[step, 0, step / 2], [0, step, step / 2], [0, 0, 1]])
    raster = _unroll(world.ground[level], first, last)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    ground = cv2.cvtColor(
        cv2.warpPerspective(raster, matrix, size, flags=flags), cv2.COLOR_BGRA2BGR
    )
    if step > 1:
        size = step * size[0], step * size[1]
        ground = cv2.resize(ground, size, interpolation=cv2.INTER_LINEAR)[:height, :width]
    return np.ascontiguousarray(ground)


def _pixel_side(matrix: np.ndarray, width: int, height: int) -> float:
    """Return the least side in image pixels of the raster's pixels under a homography to it."""
    corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1.0]])
    rays = corners @ matrix.T
    # Columns of the derivative of x / w, y / w.
    px = rays[:, :2] / rays[:, 2:]
    steps = [(matrix[:2, i] - px * matrix[2, i]) / rays[:, 2:] for i in (0, 1)]
    return float(1 / np.hypot(*np.stack(steps).T).max())


def _unroll(tile: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Return the pixels from first to last, x and y, of endless copies of a square tile."""
    (left, top), (right, bottom) = first.tolist(), last.tolist()
    columns = list(tile_ranges(left, right, len(tile)))
    rows = list(tile_ranges(top, bottom, len(tile)))
    if len(columns) == len(rows) == 1:
        return tile[rows[0][0], columns[0][0]]
    out = np.empty((bottom - top, right - left, tile.shape[2]), np.uint8)
    for from_y, to_y in rows:
        for from_x, to_x in columns:
            out[to_y, to_x] = tile[from_y, from_x]
    return out
