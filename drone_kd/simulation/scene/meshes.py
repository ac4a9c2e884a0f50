"""Vehicles, people and street furniture as a few truncated pyramids each.

A mesh stands on the ground at its own origin: x forward, y to its right, z up, all in metres.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

PERSON, CAR, TRUCK, BUS = range(4)
NO_CLASS = -1

# Corner numbers of the faces of a part: top, front, right, rear, left.
FACES = np.array([[4, 5, 6, 7], [0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]])

# A part of a mesh: corners, float64 (8, 3), metres: bottom front-left, front-right, rear-right,
# rear-left, then the same at the top; colours, float64 (5, 3) RGB in 0..255 per face in the order
# of FACES, NaN is not drawn; and a level: parts of a higher level are drawn over lower ones.
Part = tuple[np.ndarray, np.ndarray, int]

# Paints as RGB, and their shares on the road.
_PAINTS = (
    *((228, 230, 230), (28, 29, 32), (84, 87, 92), (165, 168, 172), (34, 56, 104)),
    *((148, 26, 28), (110, 96, 78), (40, 70, 48), (216, 170, 40), (66, 122, 170)),
)
_PAINT_SHARES = (0.25, 0.19, 0.17, 0.14, 0.08, 0.08, 0.04, 0.02, 0.02, 0.01)
_LIVERIES = ((225, 225, 222), (200, 40, 40), (30, 80, 160), (60, 150, 70), (235, 180, 40))
_CLOTHES = (
    (25, 26, 30),
    (50, 60, 95),
    (225, 222, 215),
    (150, 40, 40),
    (90, 95, 98),
    (190, 150, 60),
)
_GLASS = (38, 44, 50)
_OPEN = np.nan


@dataclass(frozen=True, eq=False)
class Library:
    """M meshes with P parts, made once, since building a mesh per object would be slow."""

    ids: dict[str, np.ndarray]  # mesh numbers by kind; see `library`
    class_ids: np.ndarray  # int64 (M,), index into CLASSES, or NO_CLASS
    length: np.ndarray  # float64 (M,), metres
    width: np.ndarray  # float64 (M,), metres
    corners: np.ndarray  # float64 (P, 8, 3), colours and levels, too: see Part
    colours: np.ndarray  # float64 (P, 5, 3)
    levels: np.ndarray  # int64 (P,)
    centres: np.ndarray  # float64 (P, 3), of the parts
    normals: np.ndarray  # float64 (P, 5, 3), outwards, of the faces
    # float64 (P, 5): a face is visible from points with normal @ point above this; inf: never.
    planes: np.ndarray
    first: np.ndarray  # int64 (M,), index of a mesh's first part
    count: np.ndarray  # int64 (M,), its number of parts


@lru_cache(maxsize=1)
def library() -> Library:
    """Return the meshes that all worlds share."""
    rng = np.random.default_rng(0)
    kinds = (
        ("car", CAR, car, 400),
        ("truck", TRUCK, truck, 160),
        ("bus", BUS, bus, 120),
        ("person", PERSON, person, 300),
        ("container", NO_CLASS, container, 30),
        ("clutter", NO_CLASS, clutter, 150),
        ("kiosk", NO_CLASS, kiosk, 60),
        ("lamp", NO_CLASS, lamp, 20),
        # New kinds at the end: they leave those above as they are.
        ("lying", PERSON, lying, 60),
    )
    ids: dict[str, np.ndarray] = {}
    made: list[list[Part]] = []
    class_ids: list[int] = []
    for name, class_id, make, number in kinds:
        ids[name] = np.arange(len(made), len(made) + number)
        made += [make(rng) for _ in range(number)]
        class_ids += [class_id] * number
    counts = np.array([len(parts) for parts in made])
    first = np.cumsum(counts) - counts
    corners, colours, levels = map(
        np.array, zip(*(p for parts in made for p in parts), strict=True)
    )
    low, high = (
        np.minimum.reduceat(corners.min(1), first),
        np.maximum.reduceat(corners.max(1), first),
    )
    length, width, _ = (high - low).T
    centres = corners.mean(1)
    quads = corners[:, FACES]
    normals = np.cross(quads[:, :, 2] - quads[:, :, 0], quads[:, :, 3] - quads[:, :, 1])
    outwards = ((quads.mean(2) - centres[:, None]) * normals).sum(-1, keepdims=True)
    normals *= np.sign(outwards) / np.maximum(
        np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9
    )
    planes = (quads.mean(2) * normals).sum(-1)
    planes[np.isnan(colours[..., 0])] = np.inf
    return Library(
        ids=ids,
        class_ids=np.array(class_ids, dtype=np.int64),
        length=length,
        width=width,
        corners=corners,
        colours=colours,
        levels=levels,
        centres=centres,
        normals=normals,
        planes=planes,
        first=first,
        count=counts,
    )


def car(rng: np.random.Generator) -> list[Part]:
    """A saloon, hatchback, off-roader or van."""
    paint = _paint(rng)
    glass = _shade(rng, _GLASS, 0.25)
    kind = rng.random()
    if kind < 0.13:
        return _van(rng, glass)
    length, width = rng.uniform(3.7, 4.9), rng.uniform(1.68, 1.95)
    height = rng.uniform(1.4, 1.55) if kind < 0.7 else rng.uniform(1.6, 1.85)
    waist, half = 0.58 * height, length / 2
    boot = rng.uniform(0.5, 0.95) if kind < 0.45 else 0.12
    rear, front = -half + boot, half - rng.uniform(1.0, 1.35)
    roof = _shade(rng, _GLASS, 0.2) if rng.random() < 0.1 else paint
    top = rear + 0.45, front - 0.75, 0.76 * width, height
    headlamps = _box(half - 0.01, half - 0.01 + 0.03, 0.82 * width, 0.45, 0.7)
    rear_lamps = _box(-half - 0.02, -half - 0.02 + 0.03, 0.9 * width, 0.5, 0.78)
    return [
        (_box(-half, half, width, 0.18, waist, taper=0.08), _faces(paint), 0),
        (_frustum(rear, front, 0.94 * width, waist, *top), _faces(glass, top=roof), 1),
        (headlamps, _faces((215, 215, 205)), 1),
        (rear_lamps, _faces((150, 18, 18)), 1),
    ]


def truck(rng: np.random.Generator) -> list[Part]:
    """A cab with a box, a canvas, a tipper or a flat bed behind it; some with a semi-trailer."""
    paint = _livery(rng)
    glass = _shade(rng, _GLASS, 0.25)
    width = rng.uniform(2.1, 2.5)
    length = rng.uniform(12.0, 15.5) if rng.random() < 0.3 else rng.uniform(5.8, 9.5)
    half, cab, cab_height = length / 2, rng.uniform(1.7, 2.2), rng.uniform(2.3, 2.9)
    front = half - cab
    load = _shade(rng, (222, 222, 218), 0.12) if rng.random() < 0.5 else _livery(rng)
    windows = _band(front + 0.9, half, width, 0.62 * cab_height, 0.86 * cab_height)
    parts = [
        (_box(-half, half - 0.2, 0.8 * width, 0.4, 0.9), _faces((45, 45, 48)), 0),
        (_box(front, half, width, 0.4, cab_height, taper=0.12), _faces(paint), 1),
        (windows, _faces(glass, top=_OPEN), 2),
    ]
    bed = front - rng.uniform(0.25, 0.7)
    if rng.random() < 0.72:
        parts.append((_box(-half, bed, 1.02 * width, 0.9, rng.uniform(2.5, 3.6)), _faces(load), 1))
    else:
        inside = ((120, 100, 76), (88, 90, 92), (70, 64, 58))[rng.integers(3)]
        sides = _box(-half, bed, width, 0.9, rng.uniform(1.2, 1.9))
        parts.append((sides, _faces(load, top=_OPEN), 1))
        parts.append((_box(-half + 0.1, bed - 0.1, 0.9 * width, 0.9, 1.15), _faces(inside), 1))
    return parts


def bus(rng: np.random.Generator) -> list[Part]:
    """A city bus or coach with a band of windows and boxes on its roof."""
    paint = _livery(rng)
    roof = _shade(rng, (226, 226, 222), 0.08) if rng.random() < 0.6 else paint
    length, width, height = rng.uniform(8.5, 12.8), rng.uniform(2.35, 2.6), rng.uniform(2.8, 3.3)
    half = length / 2
    parts = [
        (_box(-half, half, width, 0.3, height, taper=0.05), _faces(paint, top=roof), 0),
        (_band(-half, half, width, 1.35, 2.45), _faces(_shade(rng, _GLASS, 0.25), top=_OPEN), 1),
    ]
    grey = _shade(rng, (178, 180, 182), 0.25)
    for x in np.linspace(-0.7 * half, 0.6 * half, rng.integers(1, 5)):
        size = rng.uniform(0.4, 1.3)
        box = _box(x - size, x + size, rng.uniform(0.5, 0.75) * width, height, height + 0.25)
        parts.append((box, _faces(grey), 2))
    return parts


def person(rng: np.random.Generator) -> list[Part]:
    """A person who walks or stands."""
    shirt, trousers = (_shade(rng, _CLOTHES[rng.integers(len(_CLOTHES))], 0.3) for _ in range(2))
    hair = _shade(rng, ((40, 30, 24), (120, 90, 60), (205, 200, 190))[rng.integers(3)], 0.3)
    size = rng.uniform(0.92, 1.08)
    stride = rng.uniform(0.12, 0.34)
    parts = [
        (_box(-0.1 - stride, 0.12 - stride, 0.2, 0.0, 0.85) + [0, 0.1, 0], _faces(trousers), 0),
        (_box(stride - 0.1, stride + 0.14, 0.2, 0.0, 0.85) - [0, 0.1, 0], _faces(trousers), 0),
        (_frustum(-0.16, 0.16, 0.38, 0.8, -0.17, 0.17, 0.56, 1.45), _faces(shirt), 1),
        (_box(-0.1, 0.14, 0.2, 1.45, 1.74, taper=0.1), _faces((196, 150, 122), top=hair), 2),
    ]
    return [(corners * size, colours, level) for corners, colours, level in parts]


def lying(rng: np.random.Generator) -> list[Part]:
    """A person on the ground, head in +x, with legs apart and an arm stretched out."""
    skin = _shade(rng, (196, 150, 122), 0.1)
    top, trousers = (_shade(rng, _CLOTHES[rng.integers(len(_CLOTHES))], 0.3) for _ in range(2))
    size, spread = rng.uniform(0.9, 1.08), rng.uniform(0.02, 0.16)
    parts: list[Part] = [
        (_box(-0.05, 0.55, 0.42, 0, 0.24), _faces(top), 0),
        (_box(0.6, 0.83, 0.2, 0.02, 0.24), _faces(skin, top=_shade(rng, (60, 46, 36), 0.4)), 0),
    ]
    for side in (-1, 1):
        leg = _box(-0.88, -0.05, 0.17, 0, 0.17) + (0, side * (0.1 + spread), 0)
        arm = _box(0.0, 0.52, 0.11, 0, 0.12) + (0, side * rng.uniform(0.28, 0.4), 0)
        parts += [(leg, _faces(trousers), 0), (arm, _faces(top), 0)]
    return [(corners * size, colours, level) for corners, colours, level in parts]


def container(rng: np.random.Generator) -> list[Part]:
    """A shipping container or site cabin: looks like a truck without a cab."""
    length = 6.06 if rng.random() < 0.6 else 12.19
    paint = _shade(rng, _LIVERIES[rng.integers(len(_LIVERIES))], 0.35) * 0.75
    return [(_box(-length / 2, length / 2, 2.44, 0, 2.6), _faces(paint), 0)]


def clutter(rng: np.random.Generator) -> list[Part]:
    """A bin, planter, pallet stack or bench: about as large as a person from above."""
    kind = rng.integers(4)
    if kind == 0:
        colour = _shade(rng, ((40, 60, 44), (52, 54, 58), (44, 62, 110))[rng.integers(3)], 0.3)
        return [(_box(-0.4, 0.4, rng.uniform(0.6, 1.3), 0, 1.1), _faces(colour), 0)]
    if kind == 1:
        size = rng.uniform(0.5, 1.4)
        plant = _frustum(-0.8 * size, 0.8 * size, 1.0, 0.6, -0.4, 0.4, 0.5, 1.1)
        pot = _box(-size, size, 1.2, 0, 0.6)
        return [(pot, _faces((150, 146, 140)), 0), (plant, _faces((60, 92, 44)), 1)]
    if kind == 2:
        stack = _box(-0.6, 0.6, 1.0, 0, rng.uniform(0.4, 1.6))
        return [(stack, _faces(_shade(rng, (150, 120, 84), 0.3)), 0)]
    return [(_box(-0.9, 0.9, 0.5, 0.1, 0.5), _faces(_shade(rng, (110, 84, 60), 0.3)), 0)]


def kiosk(rng: np.random.Generator) -> list[Part]:
    """A stall or a sunshade, about as large as a car from above."""
    size = rng.uniform(1.2, 2.3)
    if rng.random() < 0.5:
        return [(_box(-size, size, 2.2, 0, 2.5), _faces(_livery(rng), top=_livery(rng)), 0)]
    sunshade = _frustum(-size, size, 2 * size, 2.1, -0.1, 0.1, 0.2, 2.9)
    return [(sunshade, _faces(_livery(rng)), 0)]


def lamp(rng: np.random.Generator) -> list[Part]:
    """A street lamp: a thin pole with an arm, easily taken for a person."""
    height = rng.uniform(4.5, 8.0)
    grey = _shade(rng, (120, 122, 124), 0.3)
    return [
        (_box(-0.08, 0.08, 0.16, 0, height), _faces(grey), 0),
        (_box(-0.1, rng.uniform(0.8, 1.8), 0.2, height - 0.15, height), _faces(grey), 1),
    ]


def _van(rng: np.random.Generator, glass: np.ndarray) -> list[Part]:
    paint = _shade(rng, (228, 228, 226), 0.06) if rng.random() < 0.6 else _paint(rng)
    half, width, height = rng.uniform(4.7, 5.8) / 2, rng.uniform(1.9, 2.05), rng.uniform(1.95, 2.5)
    nose = half - rng.uniform(0.7, 1.0)
    screen = _faces(paint)
    screen[1] = glass
    body = _frustum(-half, nose, width, 1.1, -half + 0.05, nose - 0.8, 0.88 * width, height)
    windows = _band(nose - 1.8, nose - 0.6, 0.97 * width, 1.15, 0.75 * height)
    return [
        (_box(-half, half, width, 0.2, 1.1, taper=0.06), _faces(paint), 0),
        (body, screen, 1),
        (windows, _faces(glass, top=_OPEN), 2),
    ]


def _frustum(
    x0: float, x1: float, width0: float, z0: float, x2: float, x3: float, width1: float, z1: float
) -> np.ndarray:
    """Corners (8, 3) of a rectangle x0..x1 by width0 at z0 under x2..x3 by width1 at z1."""
    y0, y1 = width0 / 2, width1 / 2
    return np.array(
        [[x1, -y0, z0], [x1, y0, z0], [x0, y0, z0], [x0, -y0, z0]]
        + [[x3, -y1, z1], [x3, y1, z1], [x2, y1, z1], [x2, -y1, z1]]
    )


def _box(
    x0: float, x1: float, width: float, z0: float, z1: float, taper: float = 0.0
) -> np.ndarray:
    inset = taper * (z1 - z0)
    return _frustum(x0, x1, width, z0, x0 + inset, x1 - inset, width - 2 * inset, z1)


def _band(x0: float, x1: float, width: float, z0: float, z1: float) -> np.ndarray:
    """A collar just outside a box, for windows."""
    return _box(x0 - 0.01, x1 + 0.01, width + 0.02, z0, z1)


def _faces(colour: ArrayLike, top: ArrayLike | None = None) -> np.ndarray:
    """Return face colours (5, 3); `top`: of the upper face, _OPEN for none; None: the same."""
    faces = np.tile(np.asarray(colour, dtype=float), (5, 1))
    if top is not None:
        faces[0] = top
    return faces


def _shade(rng: np.random.Generator, colour: ArrayLike, spread: float) -> np.ndarray:
    """Return the colour, brighter or darker by up to `spread`, with a small change of hue."""
    gain = rng.uniform(1 - spread, 1 + spread)
    return np.clip(np.asarray(colour) * gain + rng.normal(0, 5, 3), 6, 250)


def _paint(rng: np.random.Generator) -> np.ndarray:
    return _shade(rng, _PAINTS[rng.choice(len(_PAINTS), p=_PAINT_SHARES)], 0.15)


def _livery(rng: np.random.Generator) -> np.ndarray:
    return _shade(rng, _LIVERIES[rng.choice(5, p=(0.5, 0.12, 0.16, 0.1, 0.12))], 0.2)
