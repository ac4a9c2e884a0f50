"""What stands on the blocks between the roads: one function per kind of block."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from drone_kd.simulation.scene.plan import WorldPlan
from drone_kd.simulation.scene.shapes import Area, blob, disc, random_sign, rectangle, strip
from drone_kd.simulation.scene.sites import crowd, landing_pad, wilderness


def _houses(plan: WorldPlan, block: Area) -> None:
    """Houses of one style on a grid of lots."""
    rng = plan.rng
    x0, y0, x1, y1 = block
    step = rng.uniform(13, 22)
    heading = rng.normal(0, 0.04) + np.pi / 2 * rng.integers(2)
    height, ridge = rng.uniform(2.8, 6), rng.uniform(1.2, 3.2) * (rng.random() < 0.75)
    for x in np.arange(x0 + step / 2, x1 - step / 3, step).tolist():
        for y in np.arange(y0 + step / 2, y1 - step / 3, step).tolist():
            lot = rectangle(
                x - step / 2 + 0.3, y - step / 2 + 0.3, x + step / 2 - 0.3, y + step / 2 - 0.3
            )
            plan.fill(lot, "grass", "grass", "meadow", "gravel", "brick")
            if rng.random() >= 0.08:
                _house_lot(plan, x, y, step, heading, height, ridge)


def _house_lot(
    plan: WorldPlan, x: float, y: float, side: float, heading: float, height: float, ridge: float
) -> None:
    """A house with shed, drive, pool and garden on a lot around x, y."""
    rng = plan.rng
    cx, cy = x + rng.uniform(-1, 1), y + rng.uniform(-1, 1)
    size = rng.uniform(0.45, 0.62) * side, rng.uniform(0.36, 0.5) * side
    plan.building((cx, cy), size, heading, height, ridge)
    if rng.random() < 0.3:
        shed = cx + random_sign(rng) * side * 0.36, cy - side * 0.34
        plan.building(shed, (rng.uniform(2, 4.5), rng.uniform(2, 4.5)), heading, 2.3)
    if rng.random() < 0.6:
        drive = x + random_sign(rng) * side * 0.36
        plan.fill(rectangle(drive - 1.6, cy, drive + 1.6, y + side / 2), "concrete")
        if rng.random() < 0.75:
            at = y + side / 2 - rng.uniform(2.4, 3.4)
            plan.stand(plan.pick("car"), drive, at, random_sign(rng) * np.pi / 2)
    if rng.random() < 0.12:
        plan.fill(disc(x, y + side * 0.36, rng.uniform(1.2, 2.4)), "pool")
    for _ in range(rng.poisson(1.6)):
        r = rng.uniform(0.6, 3.0)
        dx, dy = rng.choice((-1, 1), 2) * side * rng.uniform(0.38, 0.5, 2)
        plan.tree(x + dx, y + dy, r, r * rng.uniform(1.6, 2.6))
    if rng.random() < 0.35:
        dx, _ = rng.uniform(-0.45, 0.45, 2) * side
        plan.stand(plan.pick("clutter"), x + dx, y + side * 0.42, rng.uniform(0, 6.3), False)
    if rng.random() < 0.3:
        person = plan.pick("person")
        plan.stand(person, x + side * 0.4, y + rng.uniform(-5, 5), rng.uniform(0, 6.3))


def _flats(plan: WorldPlan, block: Area) -> None:
    """Rows of apartment buildings with parking between them."""
    rng = plan.rng
    x0, y0, x1, y1 = block
    plan.fill(rectangle(*block), "grass", "pavement", "brick", "concrete")
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


def _industry(plan: WorldPlan, block: Area) -> None:
    """A hall with loading docks and a car park."""
    rng = plan.rng
    x0, y0, x1, y1 = block
    plan.fill(rectangle(*block), "lot", "concrete", "gravel")
    w, h = x1 - x0, y1 - y0
    size = rng.uniform(0.5, 0.8) * w, rng.uniform(0.4, 0.6) * h
    centre = x0 + w / 2, y0 + size[1] / 2 + 2
    plan.building(centre, size, 0, rng.uniform(5, 11), 1.5 * (rng.random() < 0.4))
    yard = y0 + size[1] + 5
    # Trucks at the loading docks.
    for x in np.arange(x0 + 5, x1 - 4, rng.uniform(4, 6)):
        if rng.random() < 0.45 and yard + 12 < y1:
            mesh = plan.pick("truck") if rng.random() < 0.75 else plan.pick("container")
            plan.stand(mesh, x, yard + 7.5, np.pi / 2 + rng.normal(0, 0.03))
    if y1 - yard > 26:
        _parking_row(plan, x0 + 3, x1 - 3, y1 - 8, rng.uniform(0.3, 0.95))
    _people(plan, (x0 + 3, yard, x1 - 3, y1), 5)
    _scatter_clutter(plan, (x0 + 2, yard, x1 - 2, y1), 5)


def _car_park(plan: WorldPlan, block: Area) -> None:
    """Double rows of parking bays."""
    rng = plan.rng
    x0, y0, x1, y1 = block
    plan.fill(rectangle(*block), "lot", "lot", "road", "concrete", "brick")
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


def _park(plan: WorldPlan, block: Area) -> None:
    """Lawn with paths, trees and sometimes a pond."""
    rng = plan.rng
    x0, y0, x1, y1 = block
    plan.fill(rectangle(*block), "grass", "grass", "meadow")
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    path = ("gravel", "pavement", "brick", "dirt")[rng.integers(4)]
    for corner in ([x0, y0], [x1, y1], [x0, y1], [x1, y0]):
        if rng.random() < 0.6:
            plan.fill(strip(np.array(corner), np.array([x, y]), rng.uniform(1.5, 3)), path)
    plan.fill(disc(x, y, rng.uniform(3, 8)), path)
    if rng.random() < 0.35:
        plan.fill(blob(rng, x, y, rng.uniform(4, 12)), "water")
    _people(plan, block, 16)
    _scatter_clutter(plan, block, 6)
    _scatter_trees(plan, block, int(rng.integers(4, 26)))


def _field(plan: WorldPlan, block: Area) -> None:
    """A field with furrows."""
    rng = plan.rng
    plan.fill(rectangle(*block), "crop", "soil", "meadow", "crop")
    plan.rows(block, rng.uniform(0.5, 2.5), rng.uniform(0.05, 0.3))
    x0, y0, x1, y1 = block
    if rng.random() < 0.4:
        plan.fill(strip(np.array([x0, y0]), np.array([x1, y1]), rng.uniform(2, 3.5)), "dirt")
    _people(plan, block, 3)
    _scatter_clutter(plan, block, 4)
    _scatter_trees(plan, (x0, y0, x1, y0 + 4), rng.poisson(4))


def _forest(plan: WorldPlan, block: Area) -> None:
    """Dense trees."""
    plan.fill(rectangle(*block), "scrub")
    x0, y0, x1, y1 = block
    _people(plan, block, 2)
    _scatter_trees(plan, block, int((x1 - x0) * (y1 - y0) / plan.rng.uniform(28, 70)))


def _water(plan: WorldPlan, block: Area) -> None:
    """A pond with its shore."""
    rng = plan.rng
    x0, y0, x1, y1 = block
    size = 0.5 * min(x1 - x0, y1 - y0)
    plan.fill(rectangle(*block), "meadow")
    plan.fill(blob(rng, (x0 + x1) / 2, (y0 + y1) / 2, size), "scrub")
    plan.fill(blob(rng, (x0 + x1) / 2, (y0 + y1) / 2, 0.9 * size), "water")
    _people(plan, (x0, y1 - 4, x1, y1), 5)
    _scatter_trees(plan, (x0, y0, x1, y0 + 6), rng.poisson(5))


def _yard(plan: WorldPlan, block: Area) -> None:
    """A building site or store: dirt, containers, machines, people."""
    rng = plan.rng
    x0, y0, x1, y1 = block
    plan.fill(rectangle(*block), "dirt", "soil", "gravel")
    plan.fill(blob(rng, (x0 + x1) / 2, (y0 + y1) / 2, 8), "soil", "gravel", "dirt")
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


def _depot(plan: WorldPlan, block: Area) -> None:
    """Rows of parked buses or trucks."""
    rng = plan.rng
    x0, y0, x1, y1 = block
    plan.fill(rectangle(*block), "lot", "concrete")
    kind = "bus" if rng.random() < 0.65 else "truck"
    occupied = rng.uniform(0.3, 0.9)
    for y in np.arange(y0 + 9, y1 - 8, 20):
        for x in np.arange(x0 + 3, x1 - 3, 3.7):
            if rng.random() < occupied:
                heading = random_sign(rng) * np.pi / 2 + rng.normal(0, 0.02)
                plan.stand(plan.pick(kind), x, y + rng.normal(0, 0.4), heading)
    _people(plan, block, 4)


def _plaza(plan: WorldPlan, block: Area) -> None:
    """A paved square with people."""
    rng = plan.rng
    x0, y0, x1, y1 = block
    plan.fill(rectangle(*block), "brick", "pavement", "concrete")
    plan.rows(block, rng.uniform(0.8, 5), rng.uniform(0.1, 0.5))
    for _ in range(rng.poisson(3)):
        bed = disc(rng.uniform(x0 + 4, x1 - 4), rng.uniform(y0 + 4, y1 - 4), rng.uniform(1.5, 4))
        plan.fill(bed, "grass", "water", "scrub")
    if rng.random() < 0.5:
        plan.building(((x0 + x1) / 2, y0 + 8), (0.6 * (x1 - x0), 12), 0, rng.uniform(4, 14))
        y0 += 16
    _people(plan, (x0, y0, x1, y1), 34)
    _scatter_clutter(plan, (x0, y0, x1, y1), 16)
    _scatter_trees(plan, (x0, y1 - 5, x1, y1), rng.poisson(4))


def _pitch(plan: WorldPlan, block: Area) -> None:
    """A sports ground with line markings."""
    rng = plan.rng
    x0, y0, x1, y1 = block
    ground = ("court", "grass", "track", "dirt")[rng.integers(4)]
    plan.fill(rectangle(*block), "grass")
    plan.fill(rectangle(x0 + 3, y0 + 3, x1 - 3, y1 - 3), ground)
    if ground == "grass":
        plan.rows((x0 + 3, y0 + 3, x1 - 3, y1 - 3), 8, 0.35)
    middle = np.array([[(x0 + x1) / 2, (y0 + y1) / 2]])
    half = np.array([x1 - x0 - 10, y1 - y0 - 10]) / 2
    edges = *pairwise([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)]), ((0, -1), (0, 1))
    for a, b in edges:
        line = strip((middle + half * a)[0], (middle + half * b)[0], 0.15)
        plan.mark(line[None], (225, 225, 220))
    _people(plan, (x0 + 3, y0 + 3, x1 - 3, y1 - 3), 16)
    _scatter_trees(plan, (x0, y0, x1, y0 + 2), rng.poisson(3))


# Kinds of blocks, for Layout.kinds.
BLOCKS: dict[str, Callable[[WorldPlan, Area], None]] = {
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
    "wilderness": wilderness,
    "crowd": crowd,
    "landing_pad": landing_pad,
}


def _parking_row(plan: WorldPlan, x0: float, x1: float, y: float, occupied: float) -> None:
    """Add parking bays side by side from x0 to x1; their long side runs from y to y + 5 m."""
    rng = plan.rng
    bay = rng.uniform(2.4, 2.9)
    edges = np.arange(x0, x1, bay)
    plan.fill(rectangle(x0, y, x1, y + 5), "lot")
    lines = [rectangle(x - 0.06, y, x + 0.06, y + 4.9) for x in edges]
    plan.mark(np.array(lines), (205, 205, 200))
    for x in edges[:-1] + bay / 2:
        draw = rng.random()
        if draw < occupied:
            mesh = plan.pick("car") if draw < 0.985 * occupied else plan.pick("truck")
            heading = random_sign(rng) * np.pi / 2 + rng.normal(0, 0.03)
            plan.stand(mesh, x + rng.normal(0, 0.12), y + 2.5 + rng.normal(0, 0.2), heading)
        elif draw > 0.985:
            plan.stand(plan.pick("clutter"), x, y + 2.5, rng.uniform(0, 6.3))


def _people(plan: WorldPlan, area: Area, mean: float) -> None:
    """Add people, alone and in groups."""
    rng = plan.rng
    x0, y0, x1, y1 = area
    for _ in range(rng.poisson(mean / 2)):
        spot = rng.uniform((x0, y0), (x1, y1))
        for _ in range((1, 1, 2, 4)[rng.integers(4)]):
            x, y = spot + rng.normal(0, 1.0, 2)
            plan.stand(plan.pick("person"), x, y, rng.uniform(0, 6.3))


def _scatter_clutter(plan: WorldPlan, area: Area, mean: float) -> None:
    rng = plan.rng
    x0, y0, x1, y1 = area
    for _ in range(rng.poisson(mean)):
        x, y = rng.uniform((x0, y0), (x1, y1))
        kind = "kiosk" if rng.random() < 0.2 else "clutter"
        plan.stand(plan.pick(kind), x, y, rng.uniform(0, 6.3), optional=False)


def _scatter_trees(plan: WorldPlan, area: Area, count: int) -> None:
    rng = plan.rng
    x0, y0, x1, y1 = area
    for _ in range(count):
        r = rng.uniform(1, 4.2)
        plan.tree(rng.uniform(x0, x1), rng.uniform(y0, y1), r, r * rng.uniform(1.8, 2.8))
