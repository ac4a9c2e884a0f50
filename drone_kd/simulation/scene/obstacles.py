"""Houses and trees as a layer in front of the ground and the objects."""

from __future__ import annotations

import math

import cv2
import numpy as np

from drone_kd.simulation.projection import SHIFT, fixed
from drone_kd.simulation.scene.buildings import GABLES, HOUSE_SIDES
from drone_kd.simulation.scene.camera import Camera, copies_in, in_view
from drone_kd.simulation.scene.textures import TREE_LEVELS, TREE_PX
from drone_kd.simulation.scene.world import World

# Sides of houses up to this size have one colour.
_PLAIN_PX = 8


def obstacle_layer(
    world: World, camera: Camera, bounds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Render houses and trees within bounds of `Camera.ground_bounds`, from far to near.

    Returns the layer, uint8 (h, w, 3) BGR, and its mask, uint8 (h, w), 0 or 255; where the mask is
    0 the layer is undefined.
    """
    layer = np.empty((camera.height, camera.width, 3), np.uint8)
    mask = np.zeros((camera.height, camera.width), np.uint8)
    houses = _Houses(world, camera, bounds)
    trees = _Trees(world, camera, bounds)
    order = np.argsort(-np.concatenate([houses.distance, trees.distance]))
    for i in order.tolist():
        if i < len(houses.distance):
            houses.draw(i, layer, mask)
        else:
            trees.draw(i - len(houses.distance), layer, mask)
    return layer, mask


class _Houses:
    """The houses in view, projected."""

    def __init__(self, world: World, camera: Camera, bounds: np.ndarray) -> None:
        index, xy, _ = copies_in(world.house_centres, bounds, 40)
        tops = np.column_stack([xy, world.houses[index, 4, 2]])
        keep = in_view(camera, tops, world.house_radius[index], 1)
        self._index, xy = index[keep], xy[keep]
        self.distance = np.hypot(*(xy - camera.position[:2]).T)
        points = world.houses[self._index]
        points[..., :2] += (xy - world.house_centres[self._index])[:, None]
        self._quads = camera.project(points)[0][:, HOUSE_SIDES]
        self._polygons = fixed(self._quads)
        low, high = self._quads.min(2), self._quads.max(2)
        self._sizes = (high - low).max(-1).tolist()
        self._areas, seen = _areas(camera, low, high)
        towards = camera.position - points[:, HOUSE_SIDES[:, 0]]
        self._seen = seen & ((towards * world.house_normals[self._index]).sum(-1) > 0)
        self._world = world

    def draw(self, i: int, layer: np.ndarray, mask: np.ndarray) -> None:
        """Draw the sides of a house that face the camera."""
        world, house = self._world, self._index[i]
        roof, facade = world.house_textures[house].tolist()
        light = world.house_light[house].tolist()
        for side in np.flatnonzero(self._seen[i]).tolist():
            pyramid = world.roof_textures[roof] if side >= 6 else world.facade_textures[facade]
            plain = [min(level * light[side], 255) for level in pyramid[-1][0, 0].tolist()]
            polygon, size = self._polygons[i, side], self._sizes[i][side]
            cv2.fillConvexPoly(layer, polygon, plain, cv2.LINE_8, SHIFT)
            cv2.fillConvexPoly(mask, polygon, 255, cv2.LINE_8, SHIFT)
            if side not in GABLES and size > _PLAIN_PX:
                texture = next((p for p in pyramid[::-1] if max(p.shape) >= size), pyramid[0])
                lit = cv2.convertScaleAbs(texture, alpha=light[side])
                cv2.insertChannel(texture[..., 3], lit, 3)
                _paste(layer, np.asarray(lit), self._quads[i, side], self._areas[i][side])


class _Trees:
    """The tree crowns in view, projected."""

    def __init__(self, world: World, camera: Camera, bounds: np.ndarray) -> None:
        index, xy, _ = copies_in(world.trees[:, :2], bounds, 10)
        radius, height = world.trees[index, 2], world.trees[index, 3]
        crowns = np.column_stack([xy, 0.65 * height])
        keep = in_view(camera, crowns, radius, 1.2)
        index, crowns, radius, height = index[keep], crowns[keep], radius[keep], height[keep]
        self.distance = np.hypot(*(crowns[:, :2] - camera.position[:2]).T)
        px, depth = camera.project(crowns)
        # A crown is an ellipsoid: seen from the side, its height depends on the tree's height.
        rise = 0.36 * height * np.cos(camera.pitch)
        half_px = np.stack([radius, np.hypot(radius * np.sin(camera.pitch), rise)], 1)
        half_px *= (camera.focal_px / depth)[:, None]
        self._areas, seen = _areas(camera, px - half_px, px + half_px)
        self._seen = seen.tolist()
        # The sun is to the right of a texture: turn it to where it is in the image, then stretch.
        angle = camera.yaw - math.atan2(world.sun[1], world.sun[0])
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        levels = np.log2(TREE_PX / 2 / half_px[:, 1]).astype(int).clip(0, TREE_LEVELS - 1)
        side = (TREE_PX / 2.0**levels)[:, None]
        self._matrices = np.empty((len(index), 2, 3))
        self._matrices[..., :2] = half_px[..., None] * turn * (2 / side[..., None])
        self._matrices[..., 2] = px - 0.5 - self._matrices[..., :2].sum(-1) * (side - 1) / 2
        self._matrices[..., 2] -= np.array(self._areas).reshape(-1, 4)[:, :2]
        numbers = world.trees[index, 4].astype(int).tolist()
        self._textures = [
            world.tree_textures[number][level]
            for number, level in zip(numbers, levels.tolist(), strict=True)
        ]

    def draw(self, i: int, layer: np.ndarray, mask: np.ndarray) -> None:
        """Draw a crown."""
        if not self._seen[i]:
            return
        left, top, right, bottom = self._areas[i]
        size = right - left, bottom - top
        patch = cv2.warpAffine(self._textures[i], self._matrices[i], size)
        area = slice(top, bottom), slice(left, right)
        opaque = _copy_opaque(patch, layer[area])
        mask[area] |= opaque


def _areas(camera: Camera, low: np.ndarray, high: np.ndarray) -> tuple[list, np.ndarray]:
    """Clip areas between image points (..., 2) to the frame, as nested lists of whole pixels.

    Also returns which areas are not empty, bool (...,).
    """
    size = camera.width, camera.height
    first, last = np.floor(low).clip(0, size), np.ceil(high).clip(0, size)
    areas = np.concatenate([first, last], -1).astype(int).tolist()
    return areas, (last > first).all(-1)


def _paste(layer: np.ndarray, texture: np.ndarray, quad: np.ndarray, area: list[int]) -> None:
    """Warp a texture (h, w, 4) into a quadrangle (4, 2) of the layer within an area."""
    left, top, right, bottom = area
    h, w = texture.shape[:2]
    corners = np.array([[0, 0], [w - 1, 0], [w - 1, h - 1], [0, h - 1]], np.float32)
    places = (quad - (left + 0.5, top + 0.5)).astype(np.float32)
    matrix = cv2.getPerspectiveTransform(corners, places)
    patch = cv2.warpPerspective(texture, matrix, (right - left, bottom - top))
    _copy_opaque(patch, layer[top:bottom, left:right])


def _copy_opaque(patch: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """Copy where a patch (h, w, 4) BGRA is opaque into (h, w, 3) BGR; returns 255 there."""
    _, opaque = cv2.threshold(cv2.extractChannel(patch, 3), 127, 255, cv2.THRESH_BINARY)
    cv2.copyTo(cv2.cvtColor(patch, cv2.COLOR_BGRA2BGR), opaque, layer)
    return np.asarray(opaque)
