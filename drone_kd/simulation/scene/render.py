"""What a camera over a world sees, and the exact boxes of what it sees.

Image coordinates are continuous: pixel i covers i to i + 1, and its centre is at i + 0.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from drone_kd.simulation.projection import (
    MIN_SIDE_PX,
    MIN_VISIBLE,
    SHIFT,
    fixed,
    flat,
    project,
    projection_matrix,
    visible_box,
)
from drone_kd.simulation.scene import meshes
from drone_kd.simulation.scene.meshes import FACES, NO_CLASS, PERSON
from drone_kd.simulation.scene.world import (
    AMBIENT,
    DIRECT,
    GABLES,
    HOUSE_SIDES,
    PX_PER_M,
    TILE_M,
    TILE_PX,
    TREE_LEVELS,
    TREE_PX,
    World,
    wrapped,
)

# Square pixels below which a side of an object makes no difference to the picture.
_MIN_FACE_PX = 1.0
# Sides of houses smaller than this are of one colour.
_PLAIN_PX = 8
# How far OpenCV's antialiased fill reaches beyond each edge: as much is taken off before, or small
# objects would come out a third too large.
_BLEED_PX = 0.65


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

    @cached_property
    def axes(self) -> np.ndarray:
        """World directions of image right, image down and view: float64 (3, 3), one per row."""
        sin_y, cos_y, sin_p, cos_p = (
            f(a) for a in (self.yaw, self.pitch) for f in (math.sin, math.cos)
        )
        right = np.array([cos_y, sin_y, 0.0])
        down = np.array([-sin_p * sin_y, sin_p * cos_y, -cos_p])
        view = np.array([cos_p * sin_y, -cos_p * cos_y, -sin_p])
        cos_r, sin_r = math.cos(self.roll), math.sin(self.roll)
        return np.stack([cos_r * right + sin_r * down, cos_r * down - sin_r * right, view])

    @property
    def position(self) -> np.ndarray:
        """float64 (3,), metres."""
        return np.array([self.x_m, self.y_m, self.height_m])

    @cached_property
    def projection(self) -> np.ndarray:
        """float64 (3, 3); see `drone_kd.simulation.projection.projection_matrix`."""
        f, cx, cy = self.focal_px, self.width / 2, self.height / 2
        return projection_matrix(self.axes, np.array([[f, 0, cx], [0, f, cy], [0, 0, 1]]))

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World points (..., 3) to image points (..., 2) and their depth (...,) in metres."""
        return project(points, self.position, self.projection)

    @cached_property
    def to_ground(self) -> np.ndarray:
        """Homography (3, 3) from image points to the ground's x, y in metres."""
        back = np.array([[1, 0, -self.width / 2], [0, 1, -self.height / 2], [0, 0, self.focal_px]])
        rays = self.axes.T @ back
        # A ray meets the ground where it has come down by the camera's height.
        x = self.x_m * -rays[2] + self.height_m * rays[0]
        y = self.y_m * -rays[2] + self.height_m * rays[1]
        return np.stack([x, y, -rays[2]])

    def ground_bounds(self) -> np.ndarray:
        """float64 (2, 2): lowest and highest x, y in metres of the ground in view."""
        w, h = self.width, self.height
        corners = np.array([[0, 0, 1], [w, 0, 1], [w, h, 1], [0, h, 1]]) @ self.to_ground.T
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
    image = _ground(world, camera, bounds)
    tall, cover = _tall_layer(world, camera, bounds)
    hidden = cover.copy()
    xyxy, class_ids, ids = _draw_objects(image, world, camera, bounds, t_s, present, hidden)
    cv2.copyTo(tall, cover, image)
    return View(image, xyxy, class_ids, ids)


def roll(view: View, shift_px: np.ndarray) -> View:
    """The view as a rolling shutter takes it, row after row, from top to bottom.

    Args:
        shift_px: float64 (2,), x and y by which the scene moves while the frame is read.
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
    return View(image, xyxy[kept], view.class_ids[kept], view.ids[kept])


def _ground(world: World, camera: Camera, bounds: np.ndarray) -> np.ndarray:
    gsd = camera.height_m / np.sin(camera.pitch) / camera.focal_px
    level = int(np.clip(np.log2(max(gsd * PX_PER_M, 1e-3)) + 0.3, 0, len(world.ground) - 1))
    scale = PX_PER_M / 2**level
    first = np.floor(bounds[0] * scale).astype(int) - 1
    last = np.ceil(bounds[1] * scale).astype(int) + 2
    to_raster = np.array([[scale, 0, -0.5 - first[0]], [0, scale, -0.5 - first[1]], [0, 0, 1]])
    matrix = to_raster @ camera.to_ground
    # Perspective on a grid, linear in between, is a third faster than cv2.warpPerspective.
    width, height = camera.width, camera.height
    step = max(min(width, height) // 80, 1)
    x, y = (np.arange(-step / 2, size + step, step)[:, None] for size in (width, height))
    rays = x * matrix[:, 0] + (y * matrix[:, 1] + matrix[:, 2])[:, None]
    grid = (rays[..., :2] / rays[..., 2:]).astype(np.float32)
    places = cv2.resize(grid, None, fx=step, fy=step, interpolation=cv2.INTER_LINEAR)
    places = places[step : step + height, step : step + width]
    return cv2.remap(_unrolled(world.ground[level], first, last), places, None, cv2.INTER_LINEAR)


def _unrolled(tile: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The pixels from first to last, x and y, of endless copies of a square tile."""
    (left, right), (top, bottom) = zip(first.tolist(), last.tolist(), strict=True)
    columns, rows = (list(wrapped(*ends, len(tile))) for ends in ((left, right), (top, bottom)))
    if len(columns) == len(rows) == 1:
        return tile[rows[0][0], columns[0][0]]
    out = np.empty((bottom - top, right - left, 3), np.uint8)
    for from_y, to_y in rows:
        for from_x, to_x in columns:
            out[to_y, to_x] = tile[from_y, from_x]
    return out


def _copies(xy: np.ndarray, bounds: np.ndarray, margin_m: float) -> tuple[np.ndarray, ...]:
    """All copies of points (N, 2) within the bounds: index (K,), place (K, 2), tile (K, 2)."""
    low, high = bounds[0] - margin_m, bounds[1] + margin_m
    first = np.ceil((low - xy) / TILE_M)
    steps = np.indices(np.ceil((high - low) / TILE_M).astype(int)).reshape(2, -1).T
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
    # From an object's own axes to the world's.
    sin, cos = (f(poses[index, 2]) for f in (np.sin, np.cos))
    turn = np.zeros((len(index), 3, 3))
    turn[:, 0, 0] = turn[:, 1, 1] = cos
    turn[:, 0, 1], turn[:, 1, 0] = sin, -sin
    turn[:, 2, 2] = 1
    eye = camera.position - np.column_stack([xy, np.zeros(len(xy))])
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
    starts = np.cumsum(counts) - counts
    extents = np.concatenate([low, high], 1).tolist()
    middle = ((low + high) / 2)[owner, None]
    kept = np.maximum(1 - 2 * _BLEED_PX / np.maximum(high - low, 1e-6), 0.2)
    px = middle + (px - middle) * kept[owner, None]

    raster = np.floor(xy * PX_PER_M).astype(int) % TILE_PX
    lit = world.shade[raster[:, 1], raster[:, 0]] == 0
    # The camera and the sun from where each object is.
    towards = turn[keep] @ np.stack([eye[keep], np.broadcast_to(world.sun, eye[keep].shape)], -1)
    paint = shapes.colours if world.colours is None else world.colours
    polygons, colours, ends = _faces(px, part, owner, towards, lit, paint)
    fallen_px = fixed(flat(rays[..., 3:]))

    # Only who reaches into somebody farther away has to be kept in mind.
    overlap = (low[:, None, 0] < high[:, 0]) & (low[:, None, 1] < high[:, 1])
    overlap &= overlap.T
    hides = np.triu(overlap, 1).any(1).tolist()

    shadows, own = np.zeros((2, *image.shape[:2]), np.uint8)
    drawn, boxes = [], []
    for k in range(len(index)):
        outline = polygons[ends[k] : ends[k + 1]]
        box = visible_box(extents[k], outline, hidden, own, hides[k])
        if box is None:
            continue
        drawn.append(k)
        boxes.append(box)
        if lit[k]:
            hull = cv2.convexHull(fallen_px[starts[k] : starts[k] + counts[k]].reshape(-1, 2))
            cv2.fillConvexPoly(shadows, hull, 255, cv2.LINE_8, SHIFT)

    cv2.copyTo(cv2.convertScaleAbs(image, alpha=world.shade_gain), shadows, image)
    for k in reversed(drawn):
        for i in range(ends[k], ends[k + 1]):
            cv2.fillConvexPoly(image, polygons[i], colours[i], cv2.LINE_AA, SHIFT)

    drawn = np.array(drawn, dtype=np.int64)
    drawn_tiles = tiles[drawn] & 0x3FFF
    ids = index[drawn] + len(poses) * (drawn_tiles[:, 0] << 14 | drawn_tiles[:, 1])
    class_ids = world.class_ids[index[drawn]]
    labelled = class_ids != NO_CLASS
    xyxy = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return xyxy[labelled], class_ids[labelled], ids[labelled]


def _faces(
    px: np.ndarray,
    part: np.ndarray,
    owner: np.ndarray,
    towards: np.ndarray,
    lit: np.ndarray,
    paint: np.ndarray,
) -> tuple[list[np.ndarray], list[list[float]], list[int]]:
    """The faces that are turned to the camera, object by object, far ones and low ones first.

    Args:
        px: float64 (P, 8, 2), corners of all parts in the image.
        part, owner: int64 (P,), their numbers in the library and those of their objects.
        towards: float64 (N, 3, 2), from each object to the camera and to the sun.
        lit: bool (N,), whether the sun shines on it.
        paint: float64 (P, 5, 3) RGB of the library's parts.

    Returns fixed-point polygons int32 (4, 2), a BGR colour each, and where the faces of each
    object begin (one more entry than objects).
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
    light = AMBIENT + DIRECT * lit[owner[row]] * np.clip(facing[row, face, 1], 0, None)
    shaded = np.clip(paint[part[row], face] * light[:, None], 0, 255)[:, ::-1]
    return list(fixed(px[row[:, None], FACES[face]])), shaded.tolist(), ends


def _tall_layer(world: World, camera: Camera, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Houses and trees: uint8 (h, w, 3) BGR, and where they are, 0 or 255, uint8 (h, w)."""
    layer = np.empty((camera.height, camera.width, 3), np.uint8)
    cover = np.zeros((camera.height, camera.width), np.uint8)
    houses, house_xy, _ = _copies(world.house_places, bounds, 40)
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
    points = world.houses[houses]
    points[..., :2] += (house_xy - world.house_places[houses])[:, None]
    quads = camera.project(points)[0][:, HOUSE_SIDES]
    polygons = fixed(quads)
    low, high = quads.min(2), quads.max(2)
    sizes = (high - low).max(-1).tolist()
    house_areas, seen = _areas(camera, low, high)
    towards = camera.position - points[:, HOUSE_SIDES[:, 0]]
    seen &= (towards * world.house_normals[houses]).sum(-1) > 0

    crown_px, depth = camera.project(crowns)
    # A crown is an ellipsoid: from the side it is as high as the tree's stem lets it.
    rise = 0.36 * height[keep] * np.cos(camera.pitch)
    half_px = np.stack([radius[keep], np.hypot(radius[keep] * np.sin(camera.pitch), rise)], 1)
    half_px *= (camera.focal_px / depth)[:, None]
    tree_areas, trees_seen = _areas(camera, crown_px - half_px, crown_px + half_px)
    # The sun is to a picture's right: turn it to where it is in the image, then stretch it.
    angle = camera.yaw - math.atan2(world.sun[1], world.sun[0])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    numbers = world.trees[trees, 4].astype(int).tolist()
    levels = np.log2(TREE_PX / 2 / half_px[:, 1]).astype(int).clip(0, TREE_LEVELS - 1)
    side = (TREE_PX / 2.0**levels)[:, None]
    matrices = np.empty((len(trees), 2, 3))
    matrices[..., :2] = half_px[..., None] * turn * (2 / side[..., None])
    matrices[..., 2] = crown_px - 0.5 - matrices[..., :2].sum(-1) * (side - 1) / 2
    matrices[..., 2] -= np.array(tree_areas).reshape(-1, 4)[:, :2]
    levels = levels.tolist()
    for i in np.argsort(-distance).tolist():
        k = i - len(houses)
        if k < 0:
            areas = house_areas[i]
            _draw_house(
                layer, cover, world, houses[i], quads[i], polygons[i], seen[i], sizes[i], areas
            )
        elif trees_seen[k]:
            picture = world.tree_pictures[numbers[k]][levels[k]]
            _draw_tree(layer, cover, picture, matrices[k], tree_areas[k])
    return layer, cover


def _areas(camera: Camera, low: np.ndarray, high: np.ndarray) -> tuple[list, np.ndarray]:
    """Left, top, right, bottom (..., 4) of what is between image points (..., 2), as far as it is
    in the frame, as lists of whole pixels; and which are not empty, bool (...,)."""
    size = camera.width, camera.height
    first, last = np.floor(low).clip(0, size), np.ceil(high).clip(0, size)
    areas = np.concatenate([first, last], -1).astype(int).tolist()
    return areas, (last > first).all(-1)


def _draw_house(
    layer: np.ndarray,
    cover: np.ndarray,
    world: World,
    house: int,
    quads: np.ndarray,
    polygons: np.ndarray,
    seen: np.ndarray,
    sizes: list[float],
    areas: list[list[int]],
) -> None:
    """Draw the sides that are `seen`, bool (9,), with corners at quads (9, 4, 2), which are
    polygons in fixed point."""
    roof, facade = world.house_pictures[house].tolist()
    light = world.house_light[house].tolist()
    for side in np.flatnonzero(seen).tolist():
        pyramid = world.roofs[roof] if side >= 6 else world.facades[facade]
        plain = [min(level * light[side], 255) for level in pyramid[-1][0, 0].tolist()]
        cv2.fillConvexPoly(layer, polygons[side], plain, cv2.LINE_8, SHIFT)
        cv2.fillConvexPoly(cover, polygons[side], 255, cv2.LINE_8, SHIFT)
        if side not in GABLES and sizes[side] > _PLAIN_PX:
            picture = next((p for p in pyramid[::-1] if max(p.shape) >= sizes[side]), pyramid[0])
            picture = cv2.convertScaleAbs(picture, alpha=light[side])
            _paste(layer, picture, quads[side], areas[side])


def _paste(layer: np.ndarray, picture: np.ndarray, quad: np.ndarray, area: list[int]) -> None:
    """Draw a picture (h, w, 3) into a quadrangle (4, 2) of the layer, which is in this area."""
    left, top, right, bottom = area
    h, w = picture.shape[:2]
    corners = np.array([[0, 0], [w - 1, 0], [w - 1, h - 1], [0, h - 1]], np.float32)
    places = (quad - (left + 0.5, top + 0.5)).astype(np.float32)
    # What is outside the picture stays as it is.
    cv2.warpPerspective(
        picture,
        cv2.getPerspectiveTransform(corners, places),
        (right - left, bottom - top),
        dst=layer[top:bottom, left:right],
        borderMode=cv2.BORDER_TRANSPARENT,
    )


def _draw_tree(
    layer: np.ndarray,
    cover: np.ndarray,
    picture: np.ndarray,
    matrix: np.ndarray,
    area: list[int],
) -> None:
    """Draw a picture (n, n, 4), by an affine matrix (2, 3) to pixels of this area."""
    left, top, right, bottom = area
    patch = cv2.warpAffine(picture, matrix, (right - left, bottom - top))
    mask = cv2.inRange(patch, (0, 0, 0, 128), (255, 255, 255, 255))
    cv2.copyTo(cv2.cvtColor(patch, cv2.COLOR_BGRA2BGR), mask, layer[top:bottom, left:right])
    cover[top:bottom, left:right] |= mask
