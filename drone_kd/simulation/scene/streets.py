"""Streets on a plan: surface, markings and kerbside."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drone_kd.simulation.scene.plan import WorldPlan
from drone_kd.simulation.scene.roads import Road, away_from
from drone_kd.simulation.scene.shapes import TILE_M, random_sign

Crossings = Sequence[tuple[float, float]]
# Parked cars and clutter reach this far beyond the kerb.
_KERB_M = 1.9


def add_road(plan: WorldPlan, road: Road) -> None:
    """Add the surface of a road with its sidewalks and repairs."""
    s = np.linspace(0, TILE_M, 65)
    if road.sidewalk_m:
        walk = road.half_m + road.sidewalk_m
        plan.fill(road.ribbon(s, -walk, walk), "pavement", "brick", "pavement", "concrete")
    surface = road.ribbon(s, -road.half_m, road.half_m)
    plan.fill(surface, "road", "road", "road", "lot", "concrete")
    # Repairs in another asphalt.
    for _ in range(plan.rng.integers(0, 9)):
        start = plan.rng.uniform(0, TILE_M)
        lane = plan.rng.uniform(-road.half_m, road.half_m - 2)
        piece = np.linspace(start, start + plan.rng.uniform(2, 30), 12)
        patch = road.ribbon(piece, lane, lane + plan.rng.uniform(0.6, 2))
        plan.fill(patch, "lot", "road")


def add_markings(plan: WorldPlan, road: Road, crossings: Crossings) -> None:
    """Add lane lines, edge lines, stop lines and zebra crossings."""
    rng = plan.rng
    paint = np.array((226, 226, 220)) * rng.uniform(0.7, 1.0)
    middle = np.array((214, 176, 60)) * rng.uniform(0.75, 1.0) if rng.random() < 0.3 else paint
    if rng.random() < 0.88:
        for lane in range(-road.lanes + 1, road.lanes):
            lateral = lane * road.lane_m
            solid = lane == 0 and (road.lanes > 1 or rng.random() < 0.3)
            step, length = (4.0, 4.1) if solid else (9.0, 3.0)
            s = np.arange(0, TILE_M, step)
            s = s[away_from(s + length / 2, crossings, 5 + length / 2)]
            line = road.dashes(s, length, lateral - 0.08, lateral + 0.08)
            plan.mark(line, middle if lane == 0 else paint)
    if rng.random() < 0.5:
        s = np.arange(0, TILE_M, 4.0)
        s = s[away_from(s + 2, crossings, 2.5)]
        for side in (-1, 1):
            edge = side * (road.half_m - 0.3)
            plan.mark(road.dashes(s, 4.1, edge - 0.07, edge + 0.07), paint)
    zebra = road.sidewalk_m > 0 and rng.random() < 0.75
    for centre, reach in crossings:
        for side in (-1, 1):
            stop = centre + side * (reach + 4.6)
            left, right = (0.2, road.half_m - 0.5) if side < 0 else (0.5 - road.half_m, -0.2)
            plan.mark(road.dashes(stop, 0.4, left, right)[None], paint)
            if zebra:
                start = centre + side * (reach + 2) - 1.4
                bars = np.arange(-road.half_m + 0.4, road.half_m - 0.5, 0.95)
                plan.mark(road.dashes(start, 2.8, bars, bars + 0.5), paint)


def add_kerbside(
    plan: WorldPlan, road_id: int, road: Road, crossings: Crossings, people: float
) -> None:
    """Add trees, parked cars, lamps, clutter and on average `people` walkers along each kerb."""
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
            s = s[away_from(s, crossings, 9) & (rng.random(len(s)) < occupied)]
            for at, (x, y) in zip(s, road.points(s, side * (road.half_m + 0.1)), strict=True):
                # With two wheels on the sidewalk, as the lane needs its width.
                backwards = np.pi * (rng.random() < (0.1 if side > 0 else 0.9))
                plan.stand(plan.pick("car"), x, y, float(road.heading(at) + backwards))
        s = np.arange(rng.uniform(0, 30), TILE_M, 30)
        for x, y in road.points(s, side * (road.half_m + 0.3)).tolist():
            plan.stand(plan.pick("lamp"), x, y, rng.uniform(0, 6.3), optional=False)
        s = rng.uniform(0, TILE_M, rng.poisson(4))
        lateral = side * (road.half_m + rng.uniform(0.6, 1.2, len(s)))
        for x, y in road.points(s, lateral).tolist():
            plan.stand(plan.pick("clutter"), x, y, rng.uniform(0, 6.3), optional=False)
        for _ in range(rng.poisson(people)):
            # Clear of parked cars, lamps and clutter, on a narrow sidewalk beside it.
            inner = road.half_m + _KERB_M
            kerb = side * rng.uniform(inner, max(road.half_m + road.sidewalk_m - 0.3, inner + 0.2))
            speed = rng.uniform(0.8, 1.7) * random_sign(rng)
            plan.drive(plan.pick("person"), road_id, rng.uniform(0, TILE_M), kerb, speed)
