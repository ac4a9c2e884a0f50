"""Vehicles that drive: types with their shares, lanes, and crossings without collisions.

To add a vehicle, add its mesh to `meshes.library` and one entry to VEHICLES. Traffic draws from
streams of its own, so that an entry without a share in a theme changes no world of that theme.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drone_kd.simulation.scene import meshes
from drone_kd.simulation.scene.plan import WorldPlan
from drone_kd.simulation.scene.roads import Road
from drone_kd.simulation.scene.shapes import TILE_M

# Free way in metres between vehicles that cross each other's path.
_CLEARANCE_M = 1.5


@dataclass(frozen=True)
class VehicleType:
    """A kind of mesh and its share of the traffic by theme; 0 where it is not named."""

    kind: str
    shares: dict[str, float]


# The rest are cars. The first type that is drawn wins.
VEHICLES = [
    VehicleType("truck", {"industrial": 0.34, "rural": 0.16, "town": 0.1, "suburb": 0.06}),
    VehicleType("bus", {"town": 0.18, "suburb": 0.085, "industrial": 0.075, "rural": 0.06}),
]


@dataclass(frozen=True)
class _Mover:
    s: float
    lateral: float
    direction: int
    mesh: int


def add_traffic(
    plan: WorldPlan,
    roads: Sequence[Road],
    theme: str,
    speed_mps: tuple[float, float],
    density: float,
) -> None:
    """Add vehicles that drive on all lanes.

    Where roads cross, all lanes have one speed: whoever passes a crossing without a collision
    once does so always, as the world repeats. Vehicles for which there is no gap are left out.
    """
    crosses = len({road.vertical for road in roads}) > 1
    cruise = plan.stream("cruise").uniform(*speed_mps)
    placed: dict[int, list[_Mover]] = {}
    for number, road in sorted(enumerate(roads), key=lambda pair: not pair[1].vertical):
        placed[number] = []
        for direction in (1, -1):
            for lane in range(road.lanes):
                rng = plan.stream(f"lane {number} {direction} {lane}")
                speed = direction * (cruise if crosses else rng.uniform(*speed_mps))
                share = density * rng.uniform(0.3, 1.0)
                for mover in _lane(plan, road, direction, lane, theme, rng, share):
                    if _free(mover, road, roads, placed):
                        placed[number].append(mover)
                        plan.drive(mover.mesh, number, mover.s, mover.lateral, speed)


def _lane(
    plan: WorldPlan,
    road: Road,
    direction: int,
    lane: int,
    theme: str,
    rng: np.random.Generator,
    share: float,
) -> list[_Mover]:
    """Return the vehicles of one lane, spaced along the tile."""
    movers: list[_Mover] = []
    s = rng.uniform(0, 20)
    while s < TILE_M - 16:
        mesh = plan.pick(_kind(plan, theme), rng)
        length = float(meshes.library().length[mesh])
        lateral = direction * (lane + 0.5) * road.lane_m + rng.normal(0, 0.2)
        movers.append(_Mover(s + length / 2, lateral, direction, mesh))
        s += length + rng.uniform(5, 14) + rng.exponential(28) / share
    return movers


def _kind(plan: WorldPlan, theme: str) -> str:
    """Return the kind of the next vehicle: each type has a draw of its own."""
    draws = {v.kind: plan.stream(f"vehicle {v.kind}").random() for v in VEHICLES}
    drawn = (v.kind for v in VEHICLES if draws[v.kind] < v.shares.get(theme, 0))
    return next(drawn, "car")


def _free(
    mover: _Mover, road: Road, roads: Sequence[Road], placed: dict[int, list[_Mover]]
) -> bool:
    """Whether a vehicle passes all crossings without meeting those placed on other roads."""
    shapes = meshes.library()
    for number, others in placed.items():
        other_road = roads[number]
        if other_road.vertical == road.vertical:
            continue
        ((own_s, _),) = road.crossings([other_road])
        ((other_s, _),) = other_road.crossings([road])
        for other in others:
            # Right of +x is +y, right of +y is -x.
            sign = 1 if road.vertical else -1
            own = mover.direction * (own_s + sign * other.lateral - mover.s)
            its = other.direction * (other_s - sign * mover.lateral - other.s)
            gap = (own - its + TILE_M / 2) % TILE_M - TILE_M / 2
            pair = [mover.mesh, other.mesh]
            if abs(gap) < (shapes.length[pair] + shapes.width[pair]).sum() / 2 + _CLEARANCE_M:
                return False
    return True
