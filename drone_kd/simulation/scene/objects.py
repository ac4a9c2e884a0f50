"""Vehicles, people and street furniture in an image, with the boxes of their visible parts."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

from drone_kd.simulation.projection import (
    MIN_SIDE_PX,
    MIN_VISIBLE,
    SHIFT,
    fixed,
    flat,
    visible_box,
)
from drone_kd.simulation.scene import meshes
from drone_kd.simulation.scene.camera import Camera, copies_in, in_view
from drone_kd.simulation.scene.meshes import FACES, NO_CLASS, PERSON
from drone_kd.simulation.scene.shapes import PX_PER_M, TILE_PX
from drone_kd.simulation.scene.weather import Weather
from drone_kd.simulation.scene.world import World

# Faces below this area in square pixels are not drawn.
_MIN_FACE_PX = 1.0
# OpenCV's antialiased fill reaches this far beyond each edge. Objects are shrunk by as much, or
# small ones would come out a third too large.
_BLEED_PX = 0.65


def draw_objects(
    image: np.ndarray,
    world: World,
    camera: Camera,
    bounds: np.ndarray,
    t_s: float,
    present: np.ndarray | None,
    obstacles: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw all objects with their shadows into an image uint8 (h, w, 3) BGR.

    `bounds` is of `Camera.ground_bounds`, `present` as in `render.render`, `obstacles` uint8
    (h, w), not 0 where a house or tree hides the objects. Returns boxes float32 (N, 4), class ids
    int64 (N,) and object ids int64 (N,) of the labelled ones.
    """
    poses = world.poses(t_s)
    index, xy, tiles = _nearby(world, camera, bounds, poses, present)
    if not len(index):
        return np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64)

    shapes = meshes.library()
    counts = shapes.count[world.mesh_ids[index]]
    owner = np.repeat(np.arange(len(index)), counts)
    starts = np.cumsum(counts) - counts
    part = shapes.first[world.mesh_ids[index]][owner] + np.arange(len(owner)) - starts[owner]
    turn = _rotations(poses[index, 2])
    eye = camera.position - np.column_stack([xy, np.zeros(len(xy))])
    # Corners to the image, and along the sun's rays to the ground and from there to the image.
    projection = camera.projection
    fall = np.eye(3)
    fall[2] = -world.sun / world.sun[2]
    fall[2, 2] = 0
    onto = turn @ np.concatenate([projection, fall @ projection], 1)
    rays = shapes.corners[part] @ onto[owner] - np.tile(eye @ projection, 2)[owner, None]
    px = flat(rays[..., :3])
    low = np.minimum.reduceat(px.reshape(-1, 2), 8 * starts)
    high = np.maximum.reduceat(px.reshape(-1, 2), 8 * starts)
    inside = np.minimum(high, [camera.width, camera.height]) - np.maximum(low, 0)
    keep = (inside >= MIN_SIDE_PX).all(1)
    keep &= inside.clip(0).prod(1) >= MIN_VISIBLE * (high - low).prod(1)
    index, xy, tiles, low, high = index[keep], xy[keep], tiles[keep], low[keep], high[keep]
    rays, px, part = (array[keep[owner]] for array in (rays, px, part))
    counts = counts[keep]
    owner = np.repeat(np.arange(len(index)), counts)
    middle = ((low + high) / 2)[owner, None]
    shrunk = np.maximum(1 - 2 * _BLEED_PX / np.maximum(high - low, 1e-6), 0.2)
    px = middle + (px - middle) * shrunk[owner, None]

    raster = np.floor(xy * PX_PER_M).astype(int) % TILE_PX
    lit = world.shadow[raster[:, 1], raster[:, 0]] == 0
    # The camera and the sun in each object's own axes.
    towards = turn[keep] @ np.stack([eye[keep], np.broadcast_to(world.sun, eye[keep].shape)], -1)
    paint = shapes.colours if world.colours is None else world.colours
    polygons, colours, ends = _faces(px, part, owner, towards, lit, paint, world.weather)
    outlines = [polygons[a:b] for a, b in pairwise(ends)]
    drawn, boxes = _visible(outlines, low, high, obstacles.copy())
    shadow_px = np.split(fixed(flat(rays[..., 3:])), np.cumsum(counts)[:-1])
    if world.weather.shadows:
        _draw_shadows(image, [shadow_px[k] for k in drawn if lit[k]], world.shadow_gain)
    for k in reversed(drawn):
        for i in range(ends[k], ends[k + 1]):
            cv2.fillConvexPoly(image, polygons[i], colours[i], cv2.LINE_AA, SHIFT)

    chosen = np.array(drawn, dtype=np.int64)
    tile = tiles[chosen] & 0x3FFF
    ids = index[chosen] + len(poses) * (tile[:, 0] << 14 | tile[:, 1])
    class_ids = world.class_ids[index[chosen]]
    labelled = class_ids != NO_CLASS
    xyxy = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return xyxy[labelled], class_ids[labelled], ids[labelled]


def _nearby(
    world: World, camera: Camera, bounds: np.ndarray, poses: np.ndarray, present: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return index, x, y and tile of the objects that may be in view, from near to far."""
    index, xy, tiles = copies_in(poses[:, :2], bounds, 10)
    small = world.class_ids[index] == PERSON
    foot = np.column_stack([xy, np.zeros(len(xy))])
    keep = in_view(camera, foot, np.where(small, 0.9, 7.0), 3)
    if present is not None:
        keep &= present[index]
    index, xy, tiles = index[keep], xy[keep], tiles[keep]
    order = np.argsort(np.hypot(*(xy - camera.position[:2]).T))
    return index[order], xy[order], tiles[order]


def _rotations(heading: np.ndarray) -> np.ndarray:
    """Return matrices (N, 3, 3) that turn row vectors from an object's axes to the world's."""
    sin, cos = np.sin(heading), np.cos(heading)
    turn = np.zeros((len(heading), 3, 3))
    turn[:, 0, 0] = turn[:, 1, 1] = cos
    turn[:, 0, 1], turn[:, 1, 0] = sin, -sin
    turn[:, 2, 2] = 1
    return turn


def _visible(
    outlines: list[list[np.ndarray]], low: np.ndarray, high: np.ndarray, hidden: np.ndarray
) -> tuple[list[int], list[tuple[float, ...]]]:
    """Return which objects are visible enough, from near to far, and their boxes.

    Each object has fixed-point polygons, left and top, right and bottom (N, 2) in pixels, near
    objects first. `hidden`, not 0 where something hides the objects, is changed in place.
    """
    # Only objects that overlap a farther one have to be added to `hidden`.
    overlap: np.ndarray = (low[:, None, 0] < high[:, 0]) & (low[:, None, 1] < high[:, 1])
    overlap &= overlap.T
    hides = np.asarray(np.triu(overlap, 1).any(1))
    extents = np.concatenate([low, high], 1).tolist()
    scratch = np.zeros(hidden.shape, np.uint8)
    drawn, boxes = [], []
    for k, outline in enumerate(outlines):
        box = visible_box(extents[k], outline, hidden, scratch, bool(hides[k]))
        if box is not None:
            drawn.append(k)
            boxes.append(box)
    return drawn, boxes


def _draw_shadows(image: np.ndarray, shadows: list[np.ndarray], gain: float) -> None:
    """Darken the convex hulls of fixed-point corners (P, 8, 2)."""
    mask = np.zeros(image.shape[:2], np.uint8)
    areas = []
    for corners in shadows:
        hull = cv2.convexHull(corners.reshape(-1, 2))
        cv2.fillConvexPoly(mask, hull, 255, cv2.LINE_8, SHIFT)
        areas.append(cv2.boundingRect(hull))
    for x, y, w, h in areas:
        left, top = max(x >> SHIFT, 0), max(y >> SHIFT, 0)
        area = slice(top, max((y + h >> SHIFT) + 2, 0)), slice(left, max((x + w >> SHIFT) + 2, 0))
        dark, lit = mask[area], image[area]
        if dark.size:
            cv2.copyTo(cv2.convertScaleAbs(lit, alpha=gain), dark, lit)
            # Shadows that overlap are as dark as one.
            dark[:] = 0


def _faces(
    px: np.ndarray,
    part: np.ndarray,
    owner: np.ndarray,
    towards: np.ndarray,
    lit: np.ndarray,
    paint: np.ndarray,
    weather: Weather,
) -> tuple[list[np.ndarray], list[list[float]], list[int]]:
    """Return the faces that look towards the camera, object by object, far and low ones first.

    Parts have corners (P, 8, 2) in the image, an index in the library and an object; objects are
    given by (N, 3, 2), from each to the camera and to the sun, and whether they are lit. Returns
    fixed-point polygons int32 (4, 2), their BGR colours, and the index of each object's first face
    (one more entry than objects).
    """
    shapes = meshes.library()
    facing = shapes.normals[part] @ towards[owner]
    seen = facing[..., 0] > shapes.planes[part]
    a, b = px[:, FACES[:, 2]] - px[:, FACES[:, 0]], px[:, FACES[:, 3]] - px[:, FACES[:, 1]]
    seen &= np.abs(a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]) / 2 > _MIN_FACE_PX
    distance = np.linalg.norm(shapes.centres[part] - towards[owner, :, 0], axis=1)

    row, face = np.nonzero(seen)
    order = np.lexsort((-distance[row], shapes.levels[part[row]], owner[row]))
    row, face = row[order], face[order]
    ends = np.searchsorted(owner[row], np.arange(len(lit) + 1)).tolist()
    sunlit = lit[owner[row]] * np.clip(facing[row, face, 1], 0, None)
    light = weather.ambient + weather.direct * sunlit
    shaded = np.clip(paint[part[row], face] * light[:, None], 0, 255)[:, ::-1]
    return list(fixed(px[row[:, None], FACES[face]])), shaded.tolist(), ends
