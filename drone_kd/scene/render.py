"""What a camera over a world sees, and the exact boxes of what it sees.

Image coordinates are continuous: pixel i covers i to i + 1, and its centre is at i + 0.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from drone_kd.scene import meshes
from drone_kd.scene.meshes import FACES, NO_CLASS, PERSON
from drone_kd.scene.world import AMBIENT, DIRECT, HOUSE_SIDES, PX_PER_M, TILE_M, TILE_PX, World

MIN_SIDE_PX = 4.0
MIN_VISIBLE = 0.4

# Square pixels below which a side of an object makes no difference to the picture.
_MIN_FACE_PX = 0.4
# Sides of houses smaller than this are of one colour.
_PLAIN_PX = 8
# How far OpenCV's antialiased fill reaches beyond each edge: as much is taken off before, or small
# objects would come out a third too large.
_BLEED_PX = 0.65
# OpenCV's fixed point: sixteenths of a pixel.
_SHIFT, _UNIT = 4, 16


@dataclass(frozen=True)
class Camera:
    """A pinhole camera over the world. Metres and radians.

    Attributes:
        x_m, y_m, height_m: where it is; height above the ground.
        yaw: where its upper image side points, from north (-y) towards east.
        pitch: how far it looks down: pi / 2 is nadir. The horizon must stay above the image.
        roll: turn about its own axis.
        focal_px: focal length.
        width, height: of its image in pixels.
    """

    x_m: float
    y_m: float
    height_m: float
    yaw: float
    pitch: float
    roll: float
    focal_px: float
    width: int
    height: int

    def axes(self) -> np.ndarray:
        """World directions of image right, image down and view: float64 (3, 3), one per row."""
        sin_y, cos_y, sin_p, cos_p = (
            f(a) for a in (self.yaw, self.pitch) for f in (np.sin, np.cos)
        )
        right = np.array([cos_y, sin_y, 0.0])
        down = np.array([-sin_p * sin_y, sin_p * cos_y, -cos_p])
        view = np.array([cos_p * sin_y, -cos_p * cos_y, -sin_p])
        cos_r, sin_r = np.cos(self.roll), np.sin(self.roll)
        return np.stack([cos_r * right + sin_r * down, cos_r * down - sin_r * right, view])

    @property
    def position(self) -> np.ndarray:
        """float64 (3,), metres."""
        return np.array([self.x_m, self.y_m, self.height_m])

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World points (..., 3) to image points (..., 2) and their depth (...,) in metres."""
        local = (points - self.position) @ self.axes().T
        depth = local[..., 2]
        ahead = np.maximum(depth, 0.1)[..., None]
        centre = np.array([self.width, self.height]) / 2
        return self.focal_px * local[..., :2] / ahead + centre, depth

    def to_ground(self) -> np.ndarray:
        """Homography (3, 3) from image points to the ground's x, y in metres."""
        axes = self.axes()
        back = np.array([[1, 0, -self.width / 2], [0, 1, -self.height / 2], [0, 0, self.focal_px]])
        rays = axes.T @ back
        # A ray meets the ground where it has come down by the camera's height.
        x = self.x_m * -rays[2] + self.height_m * rays[0]
        y = self.y_m * -rays[2] + self.height_m * rays[1]
        return np.stack([x, y, -rays[2]])

    def ground_bounds(self) -> np.ndarray:
        """float64 (2, 2): lowest and highest x, y in metres of the ground in view."""
        w, h = self.width, self.height
        corners = np.array([[0, 0, 1], [w, 0, 1], [w, h, 1], [0, h, 1]]) @ self.to_ground().T
        if (corners[:, 2] <= 0).any():
            raise ValueError(
                f"expected the horizon above the image, got pitch {self.pitch:.3f} rad"
            )
        xy = corners[:, :2] / corners[:, 2:]
        return np.stack([xy.min(0), xy.max(0)])


@dataclass(frozen=True, eq=False)
class View:
    """A rendered image, before any sensor, with its ground truth.

    Attributes:
        image: uint8 (h, w, 3) BGR.
        xyxy: float32 (N, 4), pixels: bounds of what is visible of an object, without its shadow.
        class_ids: int64 (N,), index into CLASSES.
        ids: int64 (N,), the same for the same object in every view of a world.
    """

    image: np.ndarray
    xyxy: np.ndarray
    class_ids: np.ndarray
    ids: np.ndarray


def render(world: World, camera: Camera, t_s: float, present: np.ndarray | None = None) -> View:
    """Draw the world at time `t_s`; `present`, bool (number of objects,), leaves some out.

    Objects of less than MIN_SIDE_PX, or of which less than MIN_VISIBLE can be seen, are neither
    drawn nor labelled.

    Raises:
        ValueError: the horizon is in the image.
    """
    bounds = camera.ground_bounds()
    image = _ground(world, camera)
    tall = _tall_layer(world, camera, bounds)
    cover = cv2.extractChannel(tall, 3)
    hidden = cover.copy()
    xyxy, class_ids, ids = _draw_objects(image, world, camera, bounds, t_s, present, hidden)
    cv2.copyTo(cv2.cvtColor(tall, cv2.COLOR_BGRA2BGR), cover, image)
    return View(image, xyxy, class_ids, ids)


def _ground(world: World, camera: Camera) -> np.ndarray:
    # The raster holds one tile: bring the camera over it.
    to_tile = np.eye(3)
    to_tile[:2, 2] = -np.floor(camera.position[:2] / TILE_M) * TILE_M
    gsd = camera.height_m / np.sin(camera.pitch) / camera.focal_px
    level = int(np.clip(np.log2(max(gsd * PX_PER_M, 1e-3)) + 0.3, 0, len(world.ground) - 1))
    scale = PX_PER_M / 2**level
    to_raster = np.array([[scale, 0, -0.5], [0, scale, -0.5], [0, 0, 1]])
    from_index = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    return cv2.warpPerspective(
        world.ground[level],
        to_raster @ to_tile @ camera.to_ground() @ from_index,
        (camera.width, camera.height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_WRAP,
    )


def _copies(xy: np.ndarray, bounds: np.ndarray, margin_m: float) -> tuple[np.ndarray, ...]:
    """All copies of points (N, 2) within the bounds: index (K,), place (K, 2), tile (K, 2)."""
    low, high = bounds[0] - margin_m, bounds[1] + margin_m
    first = np.ceil((low - xy) / TILE_M)
    counts = np.ceil((high - low) / TILE_M).astype(int)
    steps = np.stack(np.meshgrid(*(np.arange(n) for n in counts), indexing="ij"), -1).reshape(
        -1, 2
    )
    tiles = first[:, None] + steps
    places = xy[:, None] + tiles * TILE_M
    index, copy = np.nonzero((places <= high).all(-1))
    return index, places[index, copy], tiles[index, copy].astype(np.int64)


def _in_view(
    camera: Camera, points: np.ndarray, radius_m: np.ndarray | float, min_px: float
) -> np.ndarray:
    """Which points (K, 3), with this much around them, reach into the image at this size."""
    px, depth = camera.project(points)
    reach = camera.focal_px * radius_m / np.maximum(depth, 0.1)
    inside = (px > -reach[:, None]) & (px < [camera.width, camera.height] + reach[:, None])
    return inside.all(1) & (depth > 2) & (reach > min_px)


def _draw_objects(
    image: np.ndarray,
    world: World,
    camera: Camera,
    bounds: np.ndarray,
    t_s: float,
    present: np.ndarray | None,
    hidden: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw all that stands on the ground with its shadow. `hidden`, uint8 (h, w), is
    where something tall stands in front; what is drawn is added to it."""
    poses = world.poses(t_s)
    index, xy, tiles = _copies(poses[:, :2], bounds, 10)
    small = world.class_ids[index] == PERSON
    keep = _in_view(camera, np.column_stack([xy, np.zeros(len(xy))]), np.where(small, 0.9, 7.0), 3)
    if present is not None:
        keep &= present[index]
    index, xy, tiles = index[keep], xy[keep], tiles[keep]
    # From near to far: who comes first hides the others.
    order = np.argsort(np.hypot(*(xy - camera.position[:2]).T))
    index, xy, tiles = index[order], xy[order], tiles[order]
    if not len(index):
        return np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64)

    shapes = meshes.library()
    counts = shapes.count[world.mesh_ids[index]]
    owner = np.repeat(np.arange(len(index)), counts)
    starts = np.cumsum(counts) - counts
    part = shapes.first[world.mesh_ids[index]][owner] + np.arange(len(owner)) - starts[owner]
    local = shapes.corners[part]
    sin, cos = (f(poses[index, 2])[owner, None] for f in (np.sin, np.cos))
    corners = local.copy()
    corners[..., 0] = local[..., 0] * cos - local[..., 1] * sin + xy[owner, None, 0]
    corners[..., 1] = local[..., 0] * sin + local[..., 1] * cos + xy[owner, None, 1]
    px, _ = camera.project(corners)
    low = np.minimum.reduceat(px.min(1), starts)
    high = np.maximum.reduceat(px.max(1), starts)
    inside = np.minimum(high, [camera.width, camera.height]) - np.maximum(low, 0)
    keep = (inside >= MIN_SIDE_PX).all(1)
    keep &= inside.clip(0).prod(1) >= MIN_VISIBLE * (high - low).prod(1)
    index, xy, tiles, low, high = index[keep], xy[keep], tiles[keep], low[keep], high[keep]
    corners, px, part = (array[keep[owner]] for array in (corners, px, part))
    counts = counts[keep]
    owner = np.repeat(np.arange(len(index)), counts)
    starts = np.cumsum(counts) - counts
    extents = np.concatenate([low, high], 1).tolist()
    middle = ((low + high) / 2)[owner, None]
    kept = np.maximum(1 - 2 * _BLEED_PX / np.maximum(high - low, 1e-6), 0.2)
    px = middle + (px - middle) * kept[owner, None]

    raster = np.floor(xy * PX_PER_M).astype(int) % TILE_PX
    lit = world.shade[raster[:, 1], raster[:, 0]] == 0
    polygons, colours, ends = _faces(
        corners, px, shapes.colours[part], shapes.levels[part], owner, lit, world.sun, camera
    )
    fallen = corners[..., :2] - world.sun[:2] / world.sun[2] * corners[..., 2:]
    fallen = np.concatenate([fallen, np.zeros_like(fallen[..., :1])], -1)
    fallen_px = _fixed(camera.project(fallen)[0])

    # Only who reaches into somebody farther away has to be kept in mind.
    overlap = (low[:, None, 0] < high[:, 0]) & (low[:, None, 1] < high[:, 1])
    overlap &= overlap.T
    hides = np.triu(overlap, 1).any(1).tolist()

    shadows = np.zeros(image.shape[:2], np.uint8)
    drawn, boxes = [], []
    for k in range(len(index)):
        outline = polygons[ends[k] : ends[k + 1]]
        box = _visible_box(extents[k], outline, hidden)
        if box is None:
            continue
        drawn.append(k)
        boxes.append(box)
        if hides[k]:
            for polygon in outline:
                cv2.fillConvexPoly(hidden, polygon, 255, cv2.LINE_8, _SHIFT)
        if lit[k]:
            hull = cv2.convexHull(fallen_px[starts[k] : starts[k] + counts[k]].reshape(-1, 2))
            cv2.fillConvexPoly(shadows, hull, 255, cv2.LINE_8, _SHIFT)

    cv2.copyTo(cv2.convertScaleAbs(image, alpha=world.shade_gain), shadows, image)
    for k in reversed(drawn):
        for i in range(ends[k], ends[k + 1]):
            cv2.fillConvexPoly(image, polygons[i], colours[i], cv2.LINE_AA, _SHIFT)

    drawn = np.array(drawn, dtype=np.int64)
    drawn_tiles = tiles[drawn] & 0x3FFF
    ids = index[drawn] + len(poses) * (drawn_tiles[:, 0] << 14 | drawn_tiles[:, 1])
    class_ids = world.class_ids[index[drawn]]
    labelled = class_ids != NO_CLASS
    xyxy = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return xyxy[labelled], class_ids[labelled], ids[labelled]


def _faces(
    corners: np.ndarray,
    px: np.ndarray,
    colours: np.ndarray,
    levels: np.ndarray,
    owner: np.ndarray,
    lit: np.ndarray,
    sun: np.ndarray,
    camera: Camera,
) -> tuple[np.ndarray, list[tuple[float, ...]], list[int]]:
    """The faces that are turned to the camera, object by object, far ones and low ones first.

    Returns fixed-point polygons int32 (F, 4, 2), a BGR colour each, and where the faces of each
    object begin (one more entry than objects).
    """
    quads = corners[:, FACES]
    centres = quads.mean(2)
    normals = np.cross(quads[:, :, 2] - quads[:, :, 0], quads[:, :, 3] - quads[:, :, 1])
    inwards = (normals * (centres - corners.mean(1)[:, None])).sum(-1) < 0
    normals[inwards] *= -1
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9)
    seen = ((camera.position - centres) * normals).sum(-1) > 0
    a, b = px[:, FACES[:, 2]] - px[:, FACES[:, 0]], px[:, FACES[:, 3]] - px[:, FACES[:, 1]]
    area_px = np.abs(a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]) / 2
    seen &= (area_px > _MIN_FACE_PX) & ~np.isnan(colours[..., 0])

    light = AMBIENT + DIRECT * lit[owner, None] * np.clip(normals @ sun, 0, None)
    shaded = np.clip(colours * light[..., None], 0, 255)[..., ::-1]
    distance = np.linalg.norm(corners.mean(1) - camera.position, axis=1)
    part, face = np.nonzero(seen)
    order = np.lexsort((-distance[part], levels[part], owner[part]))
    part, face = part[order], face[order]
    ends = np.searchsorted(owner[part], np.arange(len(lit) + 1)).tolist()
    colour_list = [tuple(colour) for colour in shaded[part, face].tolist()]
    return _fixed(px[part[:, None], FACES[face]]), colour_list, ends


def _visible_box(
    extent: list[float], outline: np.ndarray, hidden: np.ndarray
) -> tuple[float, ...] | None:
    """Bounds of what is visible of one object, or None where that is too little.

    `extent` is x0, y0, x1, y1 without anything in front, `outline` is fixed-point polygons
    (F, 4, 2), `hidden` is uint8 (h, w), not 0 where something stands in front.
    """
    height, width = hidden.shape
    x0, y0 = max(extent[0], 0.0), max(extent[1], 0.0)
    x1, y1 = min(extent[2], float(width)), min(extent[3], float(height))
    cut = [x0, y0, x1, y1] != extent
    whole = (extent[2] - extent[0]) * (extent[3] - extent[1])
    visible = (x1 - x0) * (y1 - y0) / whole
    left, top, right, bottom = int(x0), int(y0), math.ceil(x1), math.ceil(y1)
    front = hidden[top:bottom, left:right]
    # Where the frame cuts an object, its outermost corner may be outside.
    if cut or cv2.countNonZero(front):
        own = np.zeros(front.shape, np.uint8)
        for polygon in outline - [left * _UNIT, top * _UNIT]:
            cv2.fillConvexPoly(own, polygon, 255, cv2.LINE_8, _SHIFT)
        drawn = cv2.countNonZero(own)
        own[front > 0] = 0
        visible *= cv2.countNonZero(own) / max(drawn, 1)
        if visible < MIN_VISIBLE:
            return None
        x, y, w, h = cv2.boundingRect(own)
        # A side that nothing covers keeps its fraction of a pixel.
        x0, y0 = max(x0, left + x), max(y0, top + y)
        x1, y1 = min(x1, left + x + w), min(y1, top + y + h)
        if x1 - x0 < MIN_SIDE_PX or y1 - y0 < MIN_SIDE_PX:
            return None
    return x0, y0, x1, y1


def _fixed(px: np.ndarray) -> np.ndarray:
    """Image points to OpenCV's fixed point, whose whole numbers are pixel centres: int32."""
    return np.round((px - 0.5) * _UNIT).astype(np.int32)


def _tall_layer(world: World, camera: Camera, bounds: np.ndarray) -> np.ndarray:
    """Houses and trees over nothing: uint8 (h, w, 4) BGRA, alpha 0 or 255."""
    layer = np.zeros((camera.height, camera.width, 4), np.uint8)
    houses, house_xy, _ = _copies(world.houses.mean(1)[:, :2], bounds, 40)
    trees, tree_xy, _ = _copies(world.trees[:, :2], bounds, 10)
    house_tops = np.column_stack([house_xy, world.houses[houses, 4, 2]])
    keep = _in_view(camera, house_tops, world.house_radius[houses], 1)
    houses, house_xy = houses[keep], house_xy[keep]
    radius, height = world.trees[trees, 2], world.trees[trees, 3]
    crowns = np.column_stack([tree_xy, 0.65 * height])
    keep = _in_view(camera, crowns, radius, 1.2)
    trees, crowns = trees[keep], crowns[keep]

    distance = np.concatenate(
        [np.hypot(*(xy - camera.position[:2]).T) for xy in (house_xy, crowns[:, :2])]
    )
    crown_px, depth = camera.project(crowns)
    offset = house_xy - world.houses[houses].mean(1)[:, :2]
    points = world.houses[houses] + np.pad(offset, ((0, 0), (0, 1)))[:, None]
    points_px, _ = camera.project(points)
    towards = camera.position - points[:, [side[0] for side in HOUSE_SIDES]]
    seen = (towards * world.house_normals[houses]).sum(-1) > 0
    size = camera.focal_px / depth
    for i in np.argsort(-distance):
        if i < len(houses):
            _draw_house(layer, world, houses[i], points_px[i], seen[i])
        else:
            k = i - len(houses)
            _draw_tree(layer, world, trees[k], crown_px[k].tolist(), size[k], camera)
    return layer


def _draw_house(
    layer: np.ndarray, world: World, house: int, px: np.ndarray, seen: np.ndarray
) -> None:
    """Draw the sides that are `seen`, bool (9,), with corners at px (10, 2)."""
    roof, facade = world.house_pictures[house]
    light = world.house_light[house]
    for side in np.flatnonzero(seen):
        corners = px[list(HOUSE_SIDES[side])]
        if len(corners) == 3:
            plain = world.facades[facade][-1][0, 0, :3] * light[side]
            colour = (*plain.clip(0, 255).tolist(), 255)
            cv2.fillConvexPoly(layer, _fixed(corners), colour, cv2.LINE_8, _SHIFT)
        else:
            picture = world.facades[facade] if side < 4 else world.roofs[roof]
            _paste(layer, picture, corners, light[side])


def _paste(
    layer: np.ndarray, pyramid: tuple[np.ndarray, ...], quad: np.ndarray, gain: float
) -> None:
    """Draw a picture (h, w, 4) into a quadrangle (4, 2) of the layer."""
    height, width = layer.shape[:2]
    (x0, y0), (x1, y1) = quad.min(0).tolist(), quad.max(0).tolist()
    left, top = max(math.floor(x0), 0), max(math.floor(y0), 0)
    right, bottom = min(math.ceil(x1), width), min(math.ceil(y1), height)
    if right <= left or bottom <= top:
        return
    size = max(x1 - x0, y1 - y0)
    if size < _PLAIN_PX:
        colour = pyramid[-1].mean((0, 1)) * (gain, gain, gain, 1)
        cv2.fillConvexPoly(layer, _fixed(quad), colour.clip(0, 255).tolist(), cv2.LINE_8, _SHIFT)
        return
    quad = quad - [left, top]
    picture = next((p for p in pyramid[::-1] if max(p.shape[:2]) >= size), pyramid[0])
    h, w = picture.shape[:2]
    corners = np.array([[0, 0], [w, 0], [w, h], [0, h]], np.float32) - 0.5
    matrix = cv2.getPerspectiveTransform(corners, (quad - 0.5).astype(np.float32))
    patch = cv2.warpPerspective(
        picture, matrix, (right - left, bottom - top), borderMode=cv2.BORDER_REPLICATE
    )
    patch = cv2.convertScaleAbs(patch, alpha=gain)
    mask = np.zeros(patch.shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, _fixed(quad), 255, cv2.LINE_8, _SHIFT)
    target = layer[top:bottom, left:right]
    cv2.copyTo(patch, mask, target)
    target[..., 3] |= mask


def _draw_tree(
    layer: np.ndarray,
    world: World,
    tree: int,
    at: list[float],
    px_per_m: float,
    camera: Camera,
) -> None:
    _, _, radius, height, number = world.trees[tree].tolist()
    # A crown is an ellipsoid: from the side it is as high as the tree's stem lets it.
    half_w = radius * px_per_m
    half_h = px_per_m * math.hypot(
        radius * math.sin(camera.pitch), 0.36 * height * math.cos(camera.pitch)
    )
    frame_h, frame_w = layer.shape[:2]
    left, top = max(math.floor(at[0] - half_w), 0), max(math.floor(at[1] - half_h), 0)
    right = min(math.ceil(at[0] + half_w), frame_w)
    bottom = min(math.ceil(at[1] + half_h), frame_h)
    if right <= left or bottom <= top:
        return
    pyramid = world.tree_pictures[int(number)]
    picture = next((p for p in pyramid[::-1] if p.shape[0] >= 2 * half_h), pyramid[0])
    # The picture's axes are the world's: turn it into the image's, then stretch it.
    middle = picture.shape[0] / 2
    sin, cos = math.sin(camera.yaw), math.cos(camera.yaw)
    a, b = half_w * cos / middle, half_w * sin / middle
    c, d = -half_h * sin / middle, half_h * cos / middle
    e = at[0] - left - 0.5 - (a + b) * (middle - 0.5)
    f = at[1] - top - 0.5 - (c + d) * (middle - 0.5)
    patch = cv2.warpAffine(picture, np.array([[a, b, e], [c, d, f]]), (right - left, bottom - top))
    mask = cv2.inRange(cv2.extractChannel(patch, 3), 128, 255)
    target = layer[top:bottom, left:right]
    cv2.copyTo(patch, mask, target)
    target[..., 3] |= mask
