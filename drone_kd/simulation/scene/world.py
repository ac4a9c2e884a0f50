"""A town of one seed: its ground as a raster, and everything that stands or moves on it.

The world is a square tile that repeats in both directions, so that no camera ever sees its end.
World axes in metres: x east, y south, z up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from drone_kd.simulation.scene import meshes

PX_PER_M = 10
TILE_PX = 2048
TILE_M = TILE_PX / PX_PER_M
# Of the coarse raster that keeps people out of vehicles.
_TAKEN_PER_M = 2

# Materials of the ground: RGB in dark, middle and light places.
_MATERIALS = {
    "grass": ((44, 62, 30), (80, 98, 50), (122, 128, 78)),
    "meadow": ((84, 92, 48), (130, 126, 76), (172, 158, 108)),
    "crop": ((52, 78, 34), (92, 116, 52), (140, 150, 82)),
    "soil": ((88, 68, 50), (124, 98, 72), (158, 132, 102)),
    "dirt": ((110, 92, 74), (150, 130, 106), (186, 168, 142)),
    "road": ((88, 88, 88), (112, 111, 109), (134, 132, 128)),
    "lot": ((74, 75, 77), (104, 104, 104), (136, 134, 130)),
    "pavement": ((122, 118, 112), (154, 149, 142), (180, 175, 168)),
    "brick": ((112, 74, 60), (150, 104, 88), (178, 138, 120)),
    "concrete": ((128, 126, 120), (166, 163, 156), (196, 192, 184)),
    "water": ((30, 46, 44), (46, 66, 62), (74, 92, 86)),
    "scrub": ((24, 38, 20), (46, 62, 32), (84, 96, 54)),
    "gravel": ((126, 118, 108), (160, 152, 140), (196, 188, 176)),
    "court": ((40, 90, 74), (60, 112, 92), (84, 130, 110)),
    "track": ((128, 62, 48), (156, 80, 62), (178, 104, 84)),
    "pool": ((50, 140, 160), (84, 176, 192), (150, 212, 220)),
}
_MATERIAL_IDS = {name: i for i, name in enumerate(_MATERIALS)}

# Light of a surface: from all sides, and from the sun where it shines straight on it.
AMBIENT, DIRECT = 0.55, 0.6

# Sides of a house by its corners: four walls, two gables, a flat roof or two slopes. Corners 0-3
# are on the ground, 4-7 at the eaves above them, 8 and 9 are the ends of the ridge.
HOUSE_SIDES = np.array(
    [
        [4, 5, 1, 0],
        [5, 6, 2, 1],
        [6, 7, 3, 2],
        [7, 4, 0, 3],
        [4, 5, 8, 8],
        [6, 7, 9, 9],
        [4, 5, 6, 7],
        [4, 8, 9, 7],
        [5, 8, 9, 6],
    ]
)
GABLES = (4, 5)

# Side of a tree's picture, and how many times it is there, each half the size of the one before.
TREE_PX, TREE_LEVELS = 72, 4

# What a theme builds on its blocks, and how likely each is.
_THEMES = {
    "town": dict(flats=5, houses=2, car_park=4, park=3, plaza=4, pitch=1, industry=1, yard=1),
    "suburb": dict(houses=9, park=3, car_park=2, pitch=1, forest=1, yard=1, field=1),
    "industrial": dict(industry=7, car_park=4, yard=4, depot=3, field=1, flats=1),
    "rural": dict(field=7, forest=3, houses=3, water=2, yard=2, park=1),
}
_THEME_SHARES = (0.36, 0.26, 0.22, 0.16)
_LANES = {"town": (1, 4), "suburb": (1, 2), "industrial": (1, 3), "rural": (1, 2)}


@dataclass(frozen=True)
class Road:
    """A road across the tile: its centre is offset + amplitude * sin(2 pi s / TILE_M + phase).

    s runs along y where `vertical`, else along x. Lengths in metres.
    """

    vertical: bool
    offset_m: float
    amplitude_m: float
    phase: float
    lanes: int
    lane_m: float
    sidewalk_m: float

    @property
    def half_m(self) -> float:
        """From the centre to the kerb."""
        return self.lanes * self.lane_m + 0.4

    def points(self, s, lateral) -> np.ndarray:
        """Points (..., 2) at `s` along the road and `lateral` metres to the right of +s."""
        angle = 2 * np.pi * np.asarray(s) / TILE_M + self.phase
        slope = self.amplitude_m * 2 * np.pi / TILE_M * np.cos(angle)
        norm = np.hypot(1, slope)
        centre = self.offset_m + self.amplitude_m * np.sin(angle)
        # Right of +x (east) is +y (south); right of +y is -x.
        if self.vertical:
            return np.stack([centre - lateral / norm, s + lateral * slope / norm], -1)
        return np.stack([s - lateral * slope / norm, centre + lateral / norm], -1)

    def heading(self, s) -> np.ndarray:
        """Direction of +s in radians from east towards south."""
        angle = 2 * np.pi * np.asarray(s) / TILE_M + self.phase
        slope = self.amplitude_m * 2 * np.pi / TILE_M * np.cos(angle)
        return np.arctan2(1, slope) if self.vertical else np.arctan2(slope, 1)


@dataclass(frozen=True, eq=False)
class World:
    """Everything about a place that its cameras and its time do not change.

    Attributes:
        ground: uint8 (n, n, 3) BGR rasters of the tile, each half the size of the one before.
        shade: uint8 (TILE_PX, TILE_PX), 255 where a house or tree keeps the sun off the ground.
        shade_gain: how bright the ground is in a shadow, 1 is as in the sun.
        sun: float64 (3,), unit vector towards the sun.
        mesh_ids: int64 (N,), the objects' numbers in the library of meshes.
        class_ids: int64 (N,) of the objects, NO_CLASS for what is not labelled.
        place: float64 (N, 3): x, y, heading of what stands; s, lateral, direction (1 or -1) of
            what moves on a road.
        road_ids: int64 (N,), -1 for what stands.
        speed: float64 (N,), m/s along +s.
        optional: bool (N,), stands here on some days only.
        houses: float64 (B, 10, 3): corners on the ground, at the eaves, and the ridge's ends.
        house_places: float64 (B, 2), x, y of the middles.
        house_radius: float64 (B,), metres from the middle that hold it.
        house_normals: float64 (B, 9, 3), outwards, of HOUSE_SIDES; 0 for a side it has not.
        house_light: float64 (B, 9), how bright these are.
        house_pictures: int64 (B, 2): number of its roof and of its facade.
        trees: float64 (M, 5): x, y, crown radius, height, number of its picture.
        tree_pictures: uint8 (h, w, 4) BGRA, in pyramids.
        roofs, facades: uint8 (h, w, 3) BGR, in pyramids down to one pixel or two.
        colours: float64 (P, 5, 3) RGB of the library's parts; None: the library's own.
    """

    ground: tuple[np.ndarray, ...]
    shade: np.ndarray
    shade_gain: float
    sun: np.ndarray
    roads: tuple[Road, ...]
    mesh_ids: np.ndarray
    class_ids: np.ndarray
    place: np.ndarray
    road_ids: np.ndarray
    speed: np.ndarray
    optional: np.ndarray
    houses: np.ndarray
    house_places: np.ndarray
    house_radius: np.ndarray
    house_normals: np.ndarray
    house_light: np.ndarray
    house_pictures: np.ndarray
    trees: np.ndarray
    tree_pictures: tuple[tuple[np.ndarray, ...], ...]
    roofs: tuple[tuple[np.ndarray, ...], ...]
    facades: tuple[tuple[np.ndarray, ...], ...]
    colours: np.ndarray | None = None

    def poses(self, t_s: float) -> np.ndarray:
        """Where every object is at time `t_s`: float64 (N, 3), x, y, heading; not wrapped."""
        poses = self.place.copy()
        for i, road in enumerate(self.roads):
            on = self.road_ids == i
            s, lateral, direction = self.place[on].T
            s = s + self.speed[on] * t_s
            poses[on, :2] = road.points(s, lateral)
            poses[on, 2] = road.heading(s) + np.where(direction < 0, np.pi, 0)
        return poses


@dataclass(frozen=True)
class Layout:
    """What to build, where chance alone shall not decide.

    Attributes:
        theme: town, suburb, industrial or rural: mix of the traffic, what stands at the kerbs.
        kinds: what stands on the blocks between the roads, and how likely each kind is.
        roads: the roads; empty: drawn as the theme has them.
        speed_mps: slowest and fastest lane of the roads north-south.
    """

    theme: str
    kinds: dict[str, int]
    roads: tuple[Road, ...] = ()
    speed_mps: tuple[float, float] = (6.0, 15.0)


def build_world(seed: int, layout: Layout | None = None) -> World:
    """Lay out and draw the world of one seed; the same arguments give the same world."""
    rng = np.random.default_rng(seed)
    if layout is None:
        theme = list(_THEMES)[rng.choice(len(_THEMES), p=_THEME_SHARES)]
        layout = Layout(theme, _THEMES[theme])
    theme = layout.theme
    plan = _Plan(rng)
    plan.fill(_rect(0, 0, TILE_M, TILE_M), "meadow" if theme == "rural" else "grass")
    roads = list(layout.roads) or _roads(rng, theme)
    weights = np.array(list(layout.kinds.values()), dtype=float)
    for block in _blocks(roads, rng):
        kind = list(layout.kinds)[rng.choice(len(weights), p=weights / weights.sum())]
        _BLOCKS[kind](plan, block)
    for i, road in enumerate(roads):
        _draw_road(plan, road)
        _verges(plan, i, road, [r for r in roads if r.vertical != road.vertical], theme)
    for road in roads:
        _mark_road(plan, road, [r for r in roads if r.vertical != road.vertical])
    for i, road in enumerate(roads):
        _traffic(plan, i, road, [r for r in roads if r.vertical != road.vertical], layout)
    return plan.finish(roads)


class _Plan:
    """A world being laid out: materials first, then what stands on them."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        elevation, azimuth = np.radians(rng.uniform(28, 68)), rng.uniform(0, 2 * np.pi)
        flat = np.cos(elevation)
        self.sun = np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)])
        self._noise = _noise(rng)
        self._taken = np.zeros((math.ceil(TILE_M * _TAKEN_PER_M),) * 2, np.uint8)
        self._objects: list[tuple[int, tuple[float, float, float], int, float, bool]] = []
        self._fills: list[tuple[np.ndarray, int]] = []
        self._marks: list[tuple[np.ndarray, tuple[int, ...]]] = []
        self._houses: list[tuple[float, ...]] = []
        self._trees: list[tuple[float, ...]] = []

    def fill(self, polygon: np.ndarray, material: str) -> None:
        """Cover a polygon (P, 2), in metres, with a material."""
        self._fills.append((polygon[None], _MATERIAL_IDS[material] * 16))

    def mark(self, polygons: np.ndarray, rgb) -> None:
        """Paint convex polygons (K, P, 2) in one colour, over all materials."""
        self._marks.append((polygons, tuple(map(int, rgb[::-1]))))

    def rows(
        self, x0: float, y0: float, x1: float, y1: float, pitch_m: float, depth: float
    ) -> None:
        """Make furrows or courses along a random axis of a rectangle; `depth` in [0, 1]."""
        xs, ys = ([round(at * PX_PER_M) for at in ends] for ends in ((x0, x1), (y0, y1)))
        along = self.rng.random() < 0.5
        wave = np.sin(2 * np.pi * np.arange(*(xs if along else ys)) / (pitch_m * PX_PER_M))
        wave = (128 + 127 * wave).astype(np.uint8)
        for to_y, from_y in wrapped(*ys, TILE_PX):
            for to_x, from_x in wrapped(*xs, TILE_PX):
                patch = self._noise[to_y, to_x]
                stripes = wave[from_x] if along else wave[from_y, None]
                stripes = np.broadcast_to(stripes, patch.shape).copy()
                cv2.addWeighted(patch, 1 - depth, stripes, depth, 0, dst=patch)

    def pick(self, kind: str) -> int:
        """Any mesh of a kind of the library."""
        choice = meshes.library().ids[kind]
        return choice[0] + self.rng.integers(len(choice))

    def stand(self, mesh: int, x: float, y: float, heading: float, optional: bool = True) -> None:
        """Put something down, unless something else stands there."""
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
        """Let it go along a road, backwards where `speed` is negative."""
        self._objects.append((mesh, (s, lateral, -1 if speed < 0 else 1), road, speed, False))

    def wait(self, mesh: int, road: int, s: float, lateral: float, direction: int) -> None:
        self._objects.append((mesh, (s, lateral, direction), road, 0.0, True))

    def tree(self, x: float, y: float, radius: float, height: float) -> None:
        """Plant a tree, with its shadow."""
        self._trees.append((x, y, radius, height, self.rng.integers(_TREE_PICTURES)))

    def building(self, centre, size, heading: float, height: float, ridge: float = 0) -> None:
        """Put up a building, with its shadow. Sizes in metres, heading in radians."""
        self._houses.append((*centre, *size, heading, height, ridge))

    def finish(self, roads: list[Road]) -> World:
        rng = self.rng
        trees = np.array(self._trees, dtype=float).reshape(-1, 5)
        houses = _house_corners(np.array(self._houses, dtype=float).reshape(-1, 7))
        shade = np.zeros((TILE_PX, TILE_PX), np.uint8)
        _fill(shade, [(shadows, 255) for shadows in _shadows(rng, houses, trees, self.sun)])
        material = np.zeros((TILE_PX, TILE_PX), np.uint8)
        _fill(material, self._fills)
        cv2.add(material, self._noise >> 4, dst=material)
        palette = _palette(rng)
        ground = np.empty((TILE_PX, TILE_PX, 3), np.uint8)
        # In bands that the processor's cache holds.
        bands = [slice(y, y + 128) for y in range(0, TILE_PX, 128)]
        for band in bands:
            cv2.applyColorMap(material[band], palette, dst=ground[band])
        _fill(ground, self._marks)
        shade_gain = rng.uniform(0.32, 0.6)
        for band in bands:
            dark = cv2.convertScaleAbs(ground[band], alpha=shade_gain)
            cv2.copyTo(dark, shade[band], ground[band])
        levels = [ground]
        for _ in range(3):
            levels.append(
                cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
            )
        mesh_ids, place, road_ids, speed, optional = zip(*self._objects, strict=True)
        spread = houses - houses.mean(1, keepdims=True)
        normals = _house_normals(houses)
        # The first half of the walls is for low houses.
        facades = rng.integers(_FACADES // 2, size=len(houses))
        facades += np.where(houses[:, 4, 2] > 6.5, _FACADES // 2, 0)
        return World(
            ground=tuple(levels),
            shade=shade,
            shade_gain=shade_gain,
            sun=self.sun,
            roads=tuple(roads),
            mesh_ids=np.array(mesh_ids),
            class_ids=meshes.library().class_ids[np.array(mesh_ids)],
            place=np.array(place, dtype=float),
            road_ids=np.array(road_ids),
            speed=np.array(speed),
            optional=np.array(optional),
            houses=houses,
            house_places=houses.mean(1)[:, :2],
            house_radius=np.linalg.norm(spread, axis=-1).max(-1, initial=0),
            house_normals=normals,
            house_light=AMBIENT + DIRECT * np.clip(normals @ self.sun, 0, None),
            house_pictures=np.stack([rng.integers(_ROOFS, size=len(houses)), facades], 1),
            trees=trees,
            tree_pictures=_sample(rng, _tree_bank(), _TREE_PICTURES),
            roofs=_sample(rng, _roof_bank(), _ROOFS),
            facades=_sample(rng, _facade_bank(2), _FACADES // 2)
            + _sample(rng, _facade_bank(5), _FACADES // 2),
        )


def _house_corners(houses: np.ndarray) -> np.ndarray:
    """x, y, length, width, heading, height of the eaves and of the ridge above them (B, 7) to
    corners (B, 10, 3), as in World."""
    x, y, length, width, heading, height, ridge = houses.T[..., None]
    # Corners at half the length and width, the ends of the ridge in between.
    along = np.tile([1, 1, -1, -1], 2).tolist() + [1, -1]
    across = np.tile([-1, 1, 1, -1], 2).tolist() + [0, 0]
    along, across = along * length / 2, across * width / 2
    sin, cos = np.sin(heading), np.cos(heading)
    z = height * np.repeat((0, 1), (4, 6)) + ridge * np.repeat((0, 1), (8, 2))
    return np.stack([x + along * cos - across * sin, y + along * sin + across * cos, z], -1)


def _shadows(
    rng: np.random.Generator, houses: np.ndarray, trees: np.ndarray, sun: np.ndarray
) -> Iterator[np.ndarray]:
    """Polygons (K, P, 2) of the ground that houses (B, 10, 3) and trees (M, 5) keep in shadow."""
    fall = sun[:2] / sun[2]
    fallen = (houses[..., :2] - houses[..., 2:] * fall).astype(np.float32)
    yield from (cv2.convexHull(points).reshape(1, -1, 2) for points in fallen)
    reach = trees[:, 2, None] * (0.93 + 0.07 * rng.standard_normal((len(trees), len(_CIRCLE))))
    middle = trees[:, :2] - 0.65 * trees[:, 3, None] * fall
    yield _CIRCLE * reach[..., None] + middle[:, None]


def _house_normals(houses: np.ndarray) -> np.ndarray:
    a, b, c = (houses[:, HOUSE_SIDES[:, i]] for i in range(3))
    normals = np.cross(b - a, c - a)
    outwards = ((a - houses[:, None, :8].mean(2)) * normals).sum(-1, keepdims=True)
    normals *= np.sign(outwards) / np.maximum(
        np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9
    )
    saddle = houses[:, 8, 2] > houses[:, 4, 2]
    normals[saddle, 6] = 0
    normals[~saddle, 4:6] = 0
    normals[~saddle, 7:] = 0
    return normals


# --- roads and traffic ---


def _roads(rng: np.random.Generator, theme: str) -> list[Road]:
    roads = []
    most = 2 if theme in ("rural", "industrial") else 3
    for vertical in (True, False):
        count = rng.integers(1, most)
        first = rng.uniform(0, TILE_M)
        for i in range(count):
            roads.append(
                Road(
                    vertical=vertical,
                    offset_m=first + (i + rng.uniform(-0.12, 0.12)) * TILE_M / count,
                    amplitude_m=0.0 if rng.random() < 0.4 else rng.uniform(1.5, 9),
                    phase=rng.uniform(0, 2 * np.pi),
                    lanes=int(rng.integers(*_LANES[theme])),
                    lane_m=rng.uniform(2.9, 3.6),
                    sidewalk_m=0.0 if theme == "rural" else rng.uniform(1.6, 4.2),
                )
            )
    return roads


def _blocks(roads: list[Road], rng: np.random.Generator) -> list[tuple[float, ...]]:
    """Rectangles (x0, y0, x1, y1) between the roads, the long ones cut into pieces."""

    def gaps(lines: list[Road]) -> list[tuple[float, float]]:
        if not lines:
            return [(0.0, TILE_M)]
        lines = sorted(lines, key=lambda r: r.offset_m)
        edges = []
        for a, b in zip(lines, lines[1:] + lines[:1], strict=True):
            end = b.offset_m + (TILE_M if b is lines[0] else 0)
            reach = [r.amplitude_m + r.half_m + r.sidewalk_m + 1.5 for r in (a, b)]
            edges.append((a.offset_m + reach[0], end - reach[1]))
        return [(a, b) for a, b in edges if b - a > 14]

    blocks = []
    for x0, x1 in gaps([r for r in roads if r.vertical]):
        for y0, y1 in gaps([r for r in roads if not r.vertical]):
            across = max(1, round((x1 - x0) / rng.uniform(45, 90)))
            down = max(1, round((y1 - y0) / rng.uniform(45, 90)))
            for xs in _pieces(x0, x1, across, rng):
                for ys in _pieces(y0, y1, down, rng):
                    blocks.append((xs[0], ys[0], xs[1], ys[1]))
    return blocks


def _pieces(a: float, b: float, count: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    step = (b - a) / count
    inner = a + step * (np.arange(1, count) + rng.uniform(-0.2, 0.2, count - 1))
    cuts = [a, *inner, b]
    return [(p + 0.7, q - 0.7) for p, q in zip(cuts[:-1], cuts[1:], strict=True)]


def _draw_road(plan: _Plan, road: Road) -> None:
    s = np.linspace(0, TILE_M, 65)
    if road.sidewalk_m:
        walk = road.half_m + road.sidewalk_m
        material = ("pavement", "brick", "pavement", "concrete")[plan.rng.integers(4)]
        plan.fill(_ribbon(road, s, -walk, walk), material)
    material = ("road", "road", "road", "lot", "concrete")[plan.rng.integers(5)]
    plan.fill(_ribbon(road, s, -road.half_m, road.half_m), material)
    # Repairs in another asphalt.
    for _ in range(plan.rng.integers(0, 9)):
        start = plan.rng.uniform(0, TILE_M)
        lane = plan.rng.uniform(-road.half_m, road.half_m - 2)
        piece = np.linspace(start, start + plan.rng.uniform(2, 30), 12)
        patch = _ribbon(road, piece, lane, lane + plan.rng.uniform(0.6, 2))
        plan.fill(patch, ("lot", "road")[plan.rng.integers(2)])


def _mark_road(plan: _Plan, road: Road, crossing: list[Road]) -> None:
    rng = plan.rng
    stops = _stops(road, crossing)

    paint = np.array((226, 226, 220)) * rng.uniform(0.7, 1.0)
    middle = np.array((214, 176, 60)) * rng.uniform(0.75, 1.0) if rng.random() < 0.3 else paint
    if rng.random() < 0.88:
        for lane in range(-road.lanes + 1, road.lanes):
            lateral = lane * road.lane_m
            solid = lane == 0 and (road.lanes > 1 or rng.random() < 0.3)
            step, length = (4.0, 4.1) if solid else (9.0, 3.0)
            s = np.arange(0, TILE_M, step)
            s = s[_away(s + length / 2, stops, 5 + length / 2)]
            plan.mark(
                _dashes(road, s, length, lateral - 0.08, lateral + 0.08),
                middle if lane == 0 else paint,
            )
    if rng.random() < 0.5:
        s = np.arange(0, TILE_M, 4.0)
        s = s[_away(s + 2, stops, 2.5)]
        for side in (-1, 1):
            edge = side * (road.half_m - 0.3)
            plan.mark(_dashes(road, s, 4.1, edge - 0.07, edge + 0.07), paint)
    zebra = road.sidewalk_m > 0 and rng.random() < 0.75
    for centre, reach in stops:
        for side in (-1, 1):
            line = centre + side * (reach + 4.6)
            lateral = (0.2, road.half_m - 0.5) if side < 0 else (0.5 - road.half_m, -0.2)
            plan.mark(_dashes(road, line, 0.4, *lateral)[None], paint)
            if zebra:
                start = centre + side * (reach + 2) - 1.4
                bars = np.arange(-road.half_m + 0.4, road.half_m - 0.5, 0.95)
                plan.mark(_dashes(road, start, 2.8, bars, bars + 0.5), paint)


def _stops(road: Road, crossing: list[Road]) -> list[tuple[float, float]]:
    """Where along the road others cross it: (s of the centre, half the width of the gap)."""
    stops = []
    for other in crossing:
        s = other.offset_m
        for _ in range(4):
            across = road.points(s, 0.0)
            s = other.points(across[0 if road.vertical else 1], 0.0)[1 if road.vertical else 0]
        stops.append((float(s), other.half_m))
    return stops


def _away(s: np.ndarray, stops: list[tuple[float, float]], margin: float) -> np.ndarray:
    """Which places along a road are more than this margin from all crossings: bool like s."""
    keep = np.ones(np.shape(s), bool)
    for centre, reach in stops:
        apart = (s - centre + TILE_M / 2) % TILE_M - TILE_M / 2
        keep &= np.abs(apart) > reach + margin
    return keep


def _verges(plan: _Plan, road_id: int, road: Road, crossing: list[Road], theme: str) -> None:
    """Trees, lamps, people and parked cars along both kerbs."""
    rng = plan.rng
    edge = road.half_m + road.sidewalk_m
    tree_gap = rng.uniform(8, 30)
    crown = rng.uniform(1.4, 3.6)
    with_trees = rng.random() < 0.6
    for side in (-1, 1):
        if with_trees:
            s = np.arange(rng.uniform(0, tree_gap), TILE_M, tree_gap)
            s = s[rng.random(len(s)) < 0.8]
            lateral = side * (edge + rng.uniform(-0.8, 2.0, len(s)))
            for x, y in road.points(s, lateral).tolist():
                plan.tree(x, y, crown * rng.uniform(0.7, 1.25), crown * rng.uniform(1.8, 2.6))
        if not road.sidewalk_m:
            continue
        if rng.random() < 0.45:
            occupied = rng.uniform(0.2, 0.9)
            s = np.arange(0, TILE_M, rng.uniform(5.6, 6.6))
            s = s[_away(s, _stops(road, crossing), 9) & (rng.random(len(s)) < occupied)]
            for at, (x, y) in zip(s, road.points(s, side * (road.half_m + 0.1)), strict=True):
                # With two wheels on the sidewalk, as the lane needs its width.
                backwards = np.pi * (rng.random() < (0.1 if side > 0 else 0.9))
                plan.stand(plan.pick("car"), x, y, road.heading(at) + backwards)
        s = np.arange(rng.uniform(0, 30), TILE_M, 30)
        for x, y in road.points(s, side * (road.half_m + 0.3)).tolist():
            plan.stand(plan.pick("lamp"), x, y, rng.uniform(0, 6.3), optional=False)
        s = rng.uniform(0, TILE_M, rng.poisson(4))
        lateral = side * (road.half_m + rng.uniform(0.6, 1.2, len(s)))
        for x, y in road.points(s, lateral).tolist():
            plan.stand(plan.pick("clutter"), x, y, rng.uniform(0, 6.3), optional=False)
        for _ in range(rng.poisson(26 if theme == "town" else 9)):
            lateral = side * (road.half_m + rng.uniform(0.5, road.sidewalk_m - 0.3))
            speed = rng.uniform(0.8, 1.7) * _sign(rng)
            plan.drive(plan.pick("person"), road_id, rng.uniform(0, TILE_M), lateral, speed)


def _traffic(plan: _Plan, road_id: int, road: Road, crossing: list[Road], layout: Layout) -> None:
    """Roads north-south have green and move; east-west ones queue at their stop lines."""
    rng = plan.rng
    heavy = {"industrial": 0.34, "rural": 0.16, "town": 0.1, "suburb": 0.06}[layout.theme]
    coaches = {"town": 0.16, "suburb": 0.08, "industrial": 0.05, "rural": 0.05}[layout.theme]
    density = rng.uniform(0.3, 1.0)
    stops = _stops(road, crossing)
    for direction in (1, -1):
        for lane in range(road.lanes):
            lateral = direction * (lane + 0.5) * road.lane_m
            speed = direction * rng.uniform(*layout.speed_mps)
            if road.vertical:
                s = rng.uniform(0, 20)
                while s < TILE_M - 16:
                    mesh, length = _vehicle(plan, heavy, coaches)
                    jitter = rng.normal(0, 0.2)
                    plan.drive(mesh, road_id, s + length / 2, lateral + jitter, speed)
                    s += length + rng.uniform(5, 14) + rng.exponential(28) / density
                continue
            for centre, reach in stops:
                queue = rng.poisson(4 * density)
                s = centre - direction * (reach + 5.5)
                for _ in range(queue):
                    mesh, length = _vehicle(plan, heavy, coaches)
                    at = s - direction * length / 2
                    if not _away(at, stops, 1 + length / 2):
                        break
                    plan.wait(mesh, road_id, at, lateral + rng.normal(0, 0.2), direction)
                    s -= direction * (length + rng.uniform(1, 3.5))


def _vehicle(plan: _Plan, heavy: float, coaches: float) -> tuple[int, float]:
    """A vehicle of the road's mix, and its length in metres."""
    draw = plan.rng.random()
    mesh = plan.pick("truck" if draw < heavy else "bus" if draw < heavy + coaches else "car")
    return mesh, meshes.library().length[mesh]


# --- blocks ---


def _houses(plan: _Plan, block) -> None:
    rng = plan.rng
    x0, y0, x1, y1 = block
    step = rng.uniform(13, 22)
    heading = rng.normal(0, 0.04) + np.pi / 2 * rng.integers(2)
    height, ridge = rng.uniform(2.8, 6), rng.uniform(1.2, 3.2) * (rng.random() < 0.75)
    for x in np.arange(x0 + step / 2, x1 - step / 3, step):
        for y in np.arange(y0 + step / 2, y1 - step / 3, step):
            lot = _rect(
                x - step / 2 + 0.3, y - step / 2 + 0.3, x + step / 2 - 0.3, y + step / 2 - 0.3
            )
            plan.fill(lot, ("grass", "grass", "meadow", "gravel", "brick")[rng.integers(5)])
            if rng.random() < 0.08:
                continue
            cx, cy = x + rng.uniform(-1, 1), y + rng.uniform(-1, 1)
            size = rng.uniform(0.45, 0.62) * step, rng.uniform(0.36, 0.5) * step
            plan.building((cx, cy), size, heading, height, ridge)
            if rng.random() < 0.3:
                shed = cx + _sign(rng) * step * 0.36, cy - step * 0.34
                plan.building(shed, rng.uniform(2, 4.5, 2), heading, 2.3)
            if rng.random() < 0.6:
                drive = x + _sign(rng) * step * 0.36
                plan.fill(_rect(drive - 1.6, cy, drive + 1.6, y + step / 2), "concrete")
                if rng.random() < 0.75:
                    at = y + step / 2 - rng.uniform(2.4, 3.4)
                    plan.stand(plan.pick("car"), drive, at, _sign(rng) * np.pi / 2)
            if rng.random() < 0.12:
                plan.fill(_disc(x, y + step * 0.36, rng.uniform(1.2, 2.4)), "pool")
            for _ in range(rng.poisson(1.6)):
                r = rng.uniform(0.6, 3.0)
                at = rng.choice((-1, 1), 2) * step * rng.uniform(0.38, 0.5, 2)
                plan.tree(x + at[0], y + at[1], r, r * rng.uniform(1.6, 2.6))
            if rng.random() < 0.35:
                at = rng.uniform(-0.45, 0.45, 2) * step
                plan.stand(
                    plan.pick("clutter"), x + at[0], y + step * 0.42, rng.uniform(0, 6.3), False
                )
            if rng.random() < 0.3:
                plan.stand(
                    plan.pick("person"),
                    x + step * 0.4,
                    y + rng.uniform(-5, 5),
                    rng.uniform(0, 6.3),
                )


def _flats(plan: _Plan, block) -> None:
    rng = plan.rng
    x0, y0, x1, y1 = block
    plan.fill(_rect(*block), ("grass", "pavement", "brick", "concrete")[rng.integers(4)])
    height = rng.uniform(7, 18)
    deep = rng.uniform(11, 16)
    y = y0 + deep / 2 + 1
    while y < y1 - deep / 2 - 1:
        width = rng.uniform(0.55, 0.92) * (x1 - x0)
        shift = rng.uniform(-0.5, 0.5) * (x1 - x0 - width)
        plan.building(((x0 + x1) / 2 + shift, y), (width, deep), 0, height * rng.uniform(0.8, 1.1))
        lane = y + deep / 2 + rng.uniform(3, 5)
        if lane + 12 < y1:
            _parking_row(plan, x0 + 2, x1 - 2, lane, rng.uniform(0.4, 0.95))
            _people(plan, (x0, lane + 6, x1, lane + 9), 6)
        y += deep + rng.uniform(18, 26)
    _scatter_trees(plan, (x0, y1 - 6, x1, y1), rng.poisson(5))


def _industry(plan: _Plan, block) -> None:
    rng = plan.rng
    x0, y0, x1, y1 = block
    plan.fill(_rect(*block), ("lot", "concrete", "gravel")[rng.integers(3)])
    w, h = x1 - x0, y1 - y0
    size = rng.uniform(0.5, 0.8) * w, rng.uniform(0.4, 0.6) * h
    plan.building(
        (x0 + w / 2, y0 + size[1] / 2 + 2), size, 0, rng.uniform(5, 11), 1.5 * (rng.random() < 0.4)
    )
    yard = y0 + size[1] + 5
    # Trucks at their docks.
    for x in np.arange(x0 + 5, x1 - 4, rng.uniform(4, 6)):
        if rng.random() < 0.45 and yard + 12 < y1:
            mesh = plan.pick("truck") if rng.random() < 0.75 else plan.pick("container")
            plan.stand(mesh, x, yard + 7.5, np.pi / 2 + rng.normal(0, 0.03))
    if y1 - yard > 26:
        _parking_row(plan, x0 + 3, x1 - 3, y1 - 8, rng.uniform(0.3, 0.95))
    _people(plan, (x0 + 3, yard, x1 - 3, y1), 5)
    _scatter_clutter(plan, (x0 + 2, yard, x1 - 2, y1), 5)


def _car_park(plan: _Plan, block) -> None:
    rng = plan.rng
    x0, y0, x1, y1 = block
    plan.fill(_rect(*block), ("lot", "lot", "road", "concrete", "brick")[rng.integers(5)])
    occupied = rng.uniform(0.25, 0.97)
    y = y0 + 2
    while y + 5.2 < y1:
        _parking_row(plan, x0 + 2, x1 - 2, y, occupied)
        if y + 10.4 < y1:
            _parking_row(plan, x0 + 2, x1 - 2, y + 5.1, occupied)
            if rng.random() < 0.4:
                for x in np.arange(x0 + 5, x1 - 4, rng.uniform(8, 20)):
                    plan.tree(x, y + 5.1, rng.uniform(1, 2.4), rng.uniform(3, 6))
        y += 16.4
    _people(plan, (x0 + 2, y0, x1 - 2, y1), 9)
    _scatter_clutter(plan, (x0, y0, x1, y0 + 1.5), 2)


def _park(plan: _Plan, block) -> None:
    rng = plan.rng
    x0, y0, x1, y1 = block
    plan.fill(_rect(*block), ("grass", "grass", "meadow")[rng.integers(3)])
    middle = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
    path = ("gravel", "pavement", "brick", "dirt")[rng.integers(4)]
    for corner in ([x0, y0], [x1, y1], [x0, y1], [x1, y0]):
        if rng.random() < 0.6:
            plan.fill(_strip(np.array(corner), middle, rng.uniform(1.5, 3)), path)
    plan.fill(_disc(*middle, rng.uniform(3, 8)), path)
    if rng.random() < 0.35:
        plan.fill(_blob(rng, *middle, rng.uniform(4, 12)), "water")
    _people(plan, block, 16)
    _scatter_clutter(plan, block, 6)
    _scatter_trees(plan, block, rng.integers(4, 26))


def _field(plan: _Plan, block) -> None:
    rng = plan.rng
    plan.fill(_rect(*block), ("crop", "soil", "meadow", "crop")[rng.integers(4)])
    plan.rows(*block, rng.uniform(0.5, 2.5), rng.uniform(0.05, 0.3))
    x0, y0, x1, y1 = block
    if rng.random() < 0.4:
        plan.fill(_strip(np.array([x0, y0]), np.array([x1, y1]), rng.uniform(2, 3.5)), "dirt")
    _people(plan, block, 3)
    _scatter_clutter(plan, block, 4)
    _scatter_trees(plan, (x0, y0, x1, y0 + 4), rng.poisson(4))


def _forest(plan: _Plan, block) -> None:
    plan.fill(_rect(*block), "scrub")
    x0, y0, x1, y1 = block
    _people(plan, block, 2)
    _scatter_trees(plan, block, int((x1 - x0) * (y1 - y0) / plan.rng.uniform(28, 70)))


def _water(plan: _Plan, block) -> None:
    rng = plan.rng
    x0, y0, x1, y1 = block
    size = 0.5 * min(x1 - x0, y1 - y0)
    plan.fill(_rect(*block), "meadow")
    plan.fill(_blob(rng, (x0 + x1) / 2, (y0 + y1) / 2, size), "scrub")
    plan.fill(_blob(rng, (x0 + x1) / 2, (y0 + y1) / 2, 0.9 * size), "water")
    _people(plan, (x0, y1 - 4, x1, y1), 5)
    _scatter_trees(plan, (x0, y0, x1, y0 + 6), rng.poisson(5))


def _yard(plan: _Plan, block) -> None:
    """A building site or store: dirt, containers, machines, people."""
    rng = plan.rng
    x0, y0, x1, y1 = block
    plan.fill(_rect(*block), ("dirt", "soil", "gravel")[rng.integers(3)])
    plan.fill(
        _blob(rng, (x0 + x1) / 2, (y0 + y1) / 2, 8), ("soil", "gravel", "dirt")[rng.integers(3)]
    )
    spots = [(x, y) for x in np.arange(x0 + 9, x1 - 8, 17) for y in np.arange(y0 + 4, y1 - 3, 6)]
    heading = np.pi * rng.integers(2)
    for x, y in spots:
        draw = rng.random()
        if draw < 0.25:
            plan.stand(plan.pick("container"), x, y, heading + rng.normal(0, 0.04))
        elif draw < 0.45:
            plan.stand(plan.pick("truck"), x, y, heading + rng.normal(0, 0.1))
        elif draw < 0.55:
            plan.stand(plan.pick("car"), x, y, rng.uniform(0, 6.3))
    _people(plan, block, 9)
    _scatter_clutter(plan, block, 12)


def _depot(plan: _Plan, block) -> None:
    """Rows of parked buses or trucks."""
    rng = plan.rng
    x0, y0, x1, y1 = block
    plan.fill(_rect(*block), ("lot", "concrete")[rng.integers(2)])
    kind = "bus" if rng.random() < 0.65 else "truck"
    occupied = rng.uniform(0.3, 0.9)
    for y in np.arange(y0 + 9, y1 - 8, 20):
        for x in np.arange(x0 + 3, x1 - 3, 3.7):
            if rng.random() < occupied:
                heading = _sign(rng) * np.pi / 2 + rng.normal(0, 0.02)
                plan.stand(plan.pick(kind), x, y + rng.normal(0, 0.4), heading)
    _people(plan, block, 4)


def _plaza(plan: _Plan, block) -> None:
    rng = plan.rng
    x0, y0, x1, y1 = block
    plan.fill(_rect(*block), ("brick", "pavement", "concrete")[rng.integers(3)])
    plan.rows(*block, rng.uniform(0.8, 5), rng.uniform(0.1, 0.5))
    for _ in range(rng.poisson(3)):
        bed = _disc(rng.uniform(x0 + 4, x1 - 4), rng.uniform(y0 + 4, y1 - 4), rng.uniform(1.5, 4))
        plan.fill(bed, ("grass", "water", "scrub")[rng.integers(3)])
    if rng.random() < 0.5:
        plan.building(((x0 + x1) / 2, y0 + 8), (0.6 * (x1 - x0), 12), 0, rng.uniform(4, 14))
        y0 += 16
    _people(plan, (x0, y0, x1, y1), 34)
    _scatter_clutter(plan, (x0, y0, x1, y1), 16)
    _scatter_trees(plan, (x0, y1 - 5, x1, y1), rng.poisson(4))


def _pitch(plan: _Plan, block) -> None:
    rng = plan.rng
    x0, y0, x1, y1 = block
    ground = ("court", "grass", "track", "dirt")[rng.integers(4)]
    plan.fill(_rect(*block), "grass")
    plan.fill(_rect(x0 + 3, y0 + 3, x1 - 3, y1 - 3), ground)
    if ground == "grass":
        plan.rows(x0 + 3, y0 + 3, x1 - 3, y1 - 3, 8, 0.35)
    middle = np.array([[(x0 + x1) / 2, (y0 + y1) / 2]])
    half = np.array([x1 - x0 - 10, y1 - y0 - 10]) / 2
    for a, b in (
        ((-1, -1), (1, -1)),
        ((1, -1), (1, 1)),
        ((1, 1), (-1, 1)),
        ((-1, 1), (-1, -1)),
        ((0, -1), (0, 1)),
    ):
        plan.mark(
            _strip((middle + half * a)[0], (middle + half * b)[0], 0.15)[None], (225, 225, 220)
        )
    _people(plan, (x0 + 3, y0 + 3, x1 - 3, y1 - 3), 16)
    _scatter_trees(plan, (x0, y0, x1, y0 + 2), rng.poisson(3))


_BLOCKS = {
    "houses": _houses,
    "flats": _flats,
    "industry": _industry,
    "car_park": _car_park,
    "park": _park,
    "field": _field,
    "forest": _forest,
    "water": _water,
    "yard": _yard,
    "depot": _depot,
    "plaza": _plaza,
    "pitch": _pitch,
}


def _parking_row(plan: _Plan, x0: float, x1: float, y: float, occupied: float) -> None:
    """Bays side by side from x0 to x1; their long side runs from y to y + 5 m."""
    rng = plan.rng
    bay = rng.uniform(2.4, 2.9)
    edges = np.arange(x0, x1, bay)
    plan.fill(_rect(x0, y, x1, y + 5), "lot")
    plan.mark(np.array([_rect(x - 0.06, y, x + 0.06, y + 4.9) for x in edges]), (205, 205, 200))
    for x in edges[:-1] + bay / 2:
        draw = rng.random()
        if draw < occupied:
            mesh = plan.pick("car") if draw < 0.985 * occupied else plan.pick("truck")
            heading = _sign(rng) * np.pi / 2 + rng.normal(0, 0.03)
            plan.stand(mesh, x + rng.normal(0, 0.12), y + 2.5 + rng.normal(0, 0.2), heading)
        elif draw > 0.985:
            plan.stand(plan.pick("clutter"), x, y + 2.5, rng.uniform(0, 6.3))


def _people(plan: _Plan, area, mean: float) -> None:
    """Some people, alone and in groups."""
    rng = plan.rng
    x0, y0, x1, y1 = area
    for _ in range(rng.poisson(mean / 2)):
        spot = rng.uniform((x0, y0), (x1, y1))
        for _ in range((1, 1, 2, 4)[rng.integers(4)]):
            x, y = spot + rng.normal(0, 1.0, 2)
            plan.stand(plan.pick("person"), x, y, rng.uniform(0, 6.3))


def _scatter_clutter(plan: _Plan, area, mean: float) -> None:
    rng = plan.rng
    x0, y0, x1, y1 = area
    for _ in range(rng.poisson(mean)):
        x, y = rng.uniform((x0, y0), (x1, y1))
        kind = "kiosk" if rng.random() < 0.2 else "clutter"
        plan.stand(plan.pick(kind), x, y, rng.uniform(0, 6.3), optional=False)


def _scatter_trees(plan: _Plan, area, count: int) -> None:
    rng = plan.rng
    x0, y0, x1, y1 = area
    for _ in range(count):
        r = rng.uniform(1, 4.2)
        plan.tree(rng.uniform(x0, x1), rng.uniform(y0, y1), r, r * rng.uniform(1.8, 2.8))


def _sign(rng: np.random.Generator) -> int:
    return 1 - 2 * int(rng.integers(2))


# --- shapes, in metres ---


_TURNS = np.linspace(0, 2 * np.pi, 20, endpoint=False)
_CIRCLE = np.stack([np.cos(_TURNS), np.sin(_TURNS)], -1)


def _rect(x0, y0, x1, y1) -> np.ndarray:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=float)


def _disc(x, y, radius) -> np.ndarray:
    return _CIRCLE * radius + [x, y]


def _blob(rng: np.random.Generator, x, y, radius) -> np.ndarray:
    waves = (
        rng.normal(0, 0.12 / k) * np.cos(k * _TURNS + rng.uniform(0, 6.3)) for k in (1, 2, 3, 5)
    )
    return _CIRCLE * (radius * np.clip(1 + sum(waves), 0.5, 1.4))[:, None] + [x, y]


def _strip(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    along = (b - a) / max(np.hypot(*(b - a)), 1e-6)
    side = np.array([-along[1], along[0]]) * width / 2
    return np.stack([a - side, b - side, b + side, a + side])


def _ribbon(road: Road, s: np.ndarray, left: float, right: float) -> np.ndarray:
    return np.concatenate([road.points(s, left), road.points(s[::-1], right)])


def _dashes(road: Road, s, length: float, left, right) -> np.ndarray:
    """Quadrangles (..., 4, 2) along a road from s to s + length and from left to right of it."""
    s, left, right = np.broadcast_arrays(s, left, right)
    ends = np.stack([s, s + length, s + length, s], -1)
    return road.points(ends, np.stack([left, left, right, right], -1))


def wrapped(start: int, stop: int, side: int) -> Iterator[tuple[slice, slice]]:
    """The range start to stop in pieces: where each is in a tile that repeats, and where in the
    range."""
    for tile in range(start - start % side, stop, side):
        low, high = max(start, tile), min(stop, tile + side)
        yield slice(low - tile, high - tile), slice(low - start, high - start)


def _fill(raster: np.ndarray, groups: list[tuple[np.ndarray, int | tuple[int, ...]]]) -> None:
    """Fill polygons (K, P, 2), in metres, of each group with its value, one after the other.

    What leaves the tile comes in again at its other side.
    """
    counts = np.concatenate([np.full(len(polygons), polygons.shape[1]) for polygons, _ in groups])
    values = [value for polygons, value in groups for _ in polygons]
    if not values:
        return
    px = np.concatenate([polygons.reshape(-1, 2) for polygons, _ in groups]) * PX_PER_M - 0.5
    ends = np.cumsum(counts)
    low = np.minimum.reduceat(px, ends - counts) // TILE_PX
    over = (np.maximum.reduceat(px, ends - counts) // TILE_PX - low).astype(int)
    fixed = np.round((px - np.repeat(low * TILE_PX, counts, 0)) * 16).astype(np.int32)
    beyond = over.any(1).tolist()
    for k, polygon in enumerate(np.split(fixed, ends[:-1])):
        cv2.fillPoly(raster, [polygon], values[k], cv2.LINE_8, 4)
        if beyond[k]:
            for dx, dy in np.ndindex(*over[k] + 1):
                shifted = polygon - np.array([dx, dy], np.int32) * (TILE_PX * 16)
                cv2.fillPoly(raster, [shifted], values[k], cv2.LINE_8, 4)


# --- textures ---

# How many of each a world has, out of larger banks.
_TREE_PICTURES, _ROOFS, _FACADES = 6, 8, 4
_ROOF_PX = 160


@lru_cache(maxsize=1)
def _noise_bank() -> tuple[np.ndarray, np.ndarray]:
    """Two tileable noises, uint8 (TILE_PX, TILE_PX), every value equally frequent."""
    rng = np.random.default_rng(0)
    bank = []
    for falloff in (0.75, 0.08):
        total = np.zeros((TILE_PX, TILE_PX), np.float32)
        for cells in (8, 16, 32, 64, 128, 256, 512, 1024, 2048):
            grid = np.pad(rng.standard_normal((cells, cells), np.float32), 2, mode="wrap")
            scale = TILE_PX // cells
            grid = cv2.resize(grid, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
            margin = 2 * scale
            total += cells**-falloff * grid[margin : margin + TILE_PX, margin : margin + TILE_PX]
        flat = cv2.normalize(total, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
        bank.append(cv2.equalizeHist(flat))
    return tuple(bank)


def _noise(rng: np.random.Generator) -> np.ndarray:
    """A new mixture of the bank: uint8 (TILE_PX, TILE_PX)."""
    coarse, fine = (
        np.roll(noise[:: _sign(rng)], tuple(rng.integers(0, TILE_PX, 2)), (0, 1))
        for noise in _noise_bank()
    )
    share = rng.uniform(0.3, 0.7)
    return cv2.addWeighted(coarse, share, fine, 1 - share, 0)


def _palette(rng: np.random.Generator) -> np.ndarray:
    """Colours of 16 shades of every material: uint8 (256, 1, 3) BGR."""
    season = rng.normal(0, 0.025, 3)
    palette = np.empty((16, 16, 3))
    for i, stops in enumerate(_MATERIALS.values()):
        stops = np.array(stops, dtype=float) * rng.uniform(0.72, 1.15)
        # How strongly light and dark places differ.
        stops = stops[1] + (stops - stops[1]) * rng.uniform(0.35, 1.2)
        stops = stops * (1 + season + rng.normal(0, 0.015, 3))
        for channel in range(3):
            palette[i, :, channel] = np.interp(np.arange(16), (2, 7.5, 13), stops[:, channel])
    return np.clip(palette, 4, 250).astype(np.uint8).reshape(256, 1, 3)[..., ::-1].copy()


def _patch(rng: np.random.Generator, height: int, width: int, fine: bool) -> np.ndarray:
    """A piece of noise: float32 (height, width) in [-1, 1]."""
    noise = _noise_bank()[int(fine)]
    y, x = rng.integers(0, TILE_PX - height), rng.integers(0, TILE_PX - width)
    return noise[y : y + height, x : x + width].astype(np.float32) / 127.5 - 1


def _pyramid(picture: np.ndarray) -> tuple[np.ndarray, ...]:
    levels = [picture]
    while min(levels[-1].shape[:2]) > 1:
        levels.append(cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    return tuple(levels)


def _tree_picture(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """A crown from above, BGRA, with the sun to its right."""
    y, x = np.mgrid[-1 : 1 : TREE_PX * 1j, -1 : 1 : TREE_PX * 1j].astype(np.float32)
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    outline = 0.86 + sum(
        rng.normal(0, 0.05) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 5, 8)
    )
    leaves = _patch(rng, TREE_PX, TREE_PX, fine=True)
    clumps = cv2.GaussianBlur(leaves, None, 2.5)
    clumps /= np.abs(clumps).max()
    inside = radius + 0.12 * clumps + 0.05 * leaves < outline
    height = np.sqrt(np.clip(1 - (radius / outline) ** 2, 0.05, 1))
    slant = 0.45 * np.cos(np.radians(rng.uniform(28, 68)))
    light = 0.5 * height + slant * x + 0.3 * clumps + 0.13 * leaves + 0.22
    greens = (
        (72, 96, 42),
        (52, 76, 38),
        (96, 108, 52),
        (44, 62, 40),
        (120, 104, 50),
        (84, 66, 52),
    )
    green = np.array(
        greens[rng.choice(6, p=(0.3, 0.26, 0.18, 0.14, 0.07, 0.05))], dtype=np.float32
    )
    colour = np.clip(light, 0.2, 1.5)[..., None] * (
        green * rng.uniform(0.85, 1.45) + rng.normal(0, 5, 3)
    )
    alpha = np.where(inside, 255, 0)
    picture = np.dstack([np.clip(colour[..., ::-1], 0, 255), alpha])
    return _pyramid(picture.astype(np.uint8))


def _roof_picture(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """A roof of tiles, sheets or gravel, with what stands on it: skylights, vents, panels."""
    n = _ROOF_PX
    bases = (
        (150, 78, 56),
        (112, 66, 54),
        (96, 96, 98),
        (150, 148, 146),
        (184, 182, 178),
        (72, 74, 80),
        (128, 118, 104),
    )
    base = np.array(bases[rng.integers(len(bases))]) * rng.uniform(0.75, 1.2)
    shade = 0.12 * _patch(rng, n, n, True) + 0.14 * _patch(rng, n, n, False)
    course = np.sin(np.arange(n) * 2 * np.pi / rng.uniform(4, 14)) * rng.uniform(0, 0.16)
    shade += course[:, None] if rng.random() < 0.5 else course
    roof = (base * (1 + shade)[..., None])[..., ::-1].clip(0, 250).astype(np.uint8)
    if rng.random() < 0.5:
        edge = tuple(map(float, (base * rng.uniform(0.6, 1.5)).clip(0, 240)[::-1]))
        cv2.rectangle(roof, (0, 0), (n - 1, n - 1), edge, int(rng.integers(2, 7)))
    for _ in range(rng.poisson(5)):
        x, y = rng.integers(8, n - 30, 2).tolist()
        w, h = rng.integers(6, 26, 2).tolist()
        grey = ((40, 45, 52), (220, 222, 224), (150, 152, 154), (96, 60, 40))[rng.integers(4)]
        cv2.rectangle(roof, (x + 2, y + 3), (x + w + 2, y + h + 3), (40, 40, 42), -1)
        cv2.rectangle(roof, (x, y), (x + w, y + h), grey, -1)
    if rng.random() < 0.2:
        x, y = rng.integers(10, n // 2, 2).tolist()
        for i in range(4):
            for j in range(3):
                corner = x + 18 * i, y + 26 * j
                cv2.rectangle(roof, corner, (corner[0] + 16, corner[1] + 24), (62, 40, 28), -1)
    return _pyramid(roof)


@lru_cache(maxsize=1)
def _tree_bank() -> list[tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(3)
    return [_tree_picture(rng) for _ in range(150)]


@lru_cache(maxsize=1)
def _roof_bank() -> list[tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(1)
    return [_roof_picture(rng) for _ in range(72)]


@lru_cache(maxsize=2)
def _facade_bank(floors: int) -> list[tuple[np.ndarray, ...]]:
    rng = np.random.default_rng((2, floors))
    return [_facade_picture(rng, floors) for _ in range(30)]


def _sample(rng: np.random.Generator, bank: list, count: int) -> tuple:
    return tuple(bank[i] for i in rng.choice(len(bank), count, replace=False))


def _facade_picture(rng: np.random.Generator, floors: int) -> tuple[np.ndarray, ...]:
    """A wall with rows of windows, the upper side of the picture at the eaves."""
    bases = ((176, 162, 140), (190, 188, 182), (150, 92, 70), (128, 126, 122), (206, 196, 170))
    base = np.array(bases[rng.integers(len(bases))]) * rng.uniform(0.7, 1.1)
    wall = base * (1 + 0.1 * _patch(rng, 64, 128, False))[..., None]
    wall = wall[..., ::-1].clip(0, 250).astype(np.uint8)
    columns = int(floors * rng.uniform(1.4, 2.6))
    step_x, step_y = 128 / columns, 64 / floors
    share_x, share_y = rng.uniform(0.3, 0.75), rng.uniform(0.35, 0.6)
    for column in range(columns):
        for floor in range(floors):
            if rng.random() < 0.12:
                continue
            x, y = round((column + 0.5 - share_x / 2) * step_x), round((floor + 0.25) * step_y)
            glass = tuple(map(float, rng.uniform(0.6, 1.6) * np.array((66, 58, 50))))
            corner = x + round(share_x * step_x), y + round(share_y * step_y)
            cv2.rectangle(wall, (x, y), corner, glass, -1)
    return _pyramid(wall)
