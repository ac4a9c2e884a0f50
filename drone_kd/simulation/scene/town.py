"""The world of one seed: roads, blocks between them, traffic."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from drone_kd.simulation.scene.blocks import BLOCKS
from drone_kd.simulation.scene.plan import WorldPlan
from drone_kd.simulation.scene.roads import Road, sample_roads
from drone_kd.simulation.scene.shapes import TILE_M, Area, rectangle
from drone_kd.simulation.scene.streets import add_kerbside, add_markings, add_road
from drone_kd.simulation.scene.thermal import as_thermal
from drone_kd.simulation.scene.traffic import add_traffic
from drone_kd.simulation.scene.weather import WEATHERS, Weather
from drone_kd.simulation.scene.world import World

# Kinds of blocks of each theme with their weights.
_THEMES: dict[str, dict[str, int]] = {
    "town": {
        "flats": 5,
        "houses": 2,
        "car_park": 4,
        "park": 3,
        "plaza": 4,
        "pitch": 1,
        "industry": 1,
        "yard": 1,
    },
    "suburb": {
        "houses": 9,
        "park": 3,
        "car_park": 2,
        "pitch": 1,
        "forest": 1,
        "yard": 1,
        "field": 1,
    },
    "industrial": {"industry": 7, "car_park": 4, "yard": 4, "depot": 3, "field": 1, "flats": 1},
    "rural": {"field": 7, "forest": 3, "houses": 3, "water": 2, "yard": 2, "park": 1},
}
_THEME_SHARES = (0.36, 0.26, 0.22, 0.16)


@dataclass(frozen=True)
class Layout:
    """What to build."""

    theme: str  # town, suburb, industrial or rural: mix of the traffic and of the kerbside
    kinds: dict[str, int]  # kinds of blocks between the roads, with their weights
    roads: tuple[Road, ...] = ()  # empty: sampled for the theme
    speed_mps: tuple[float, float] = (6.0, 15.0)  # slowest and fastest lane
    traffic: float = 1.0  # factor on the density of the traffic


def build_world(
    seed: int, layout: Layout | None = None, weather: Weather = WEATHERS["clear"]
) -> World:
    """Build the world of one seed, 0 or more; without a layout, of a random theme.

    The place does not depend on the weather.
    """
    rng = np.random.default_rng(seed)
    if layout is None:
        theme = list(_THEMES)[rng.choice(len(_THEMES), p=_THEME_SHARES)]
        layout = Layout(theme, _THEMES[theme])
    theme = layout.theme
    plan = WorldPlan(seed, rng, weather)
    plan.fill(rectangle(0, 0, TILE_M, TILE_M), "meadow" if theme == "rural" else "grass")
    roads = list(layout.roads) or sample_roads(rng, theme)
    weights = np.array(list(layout.kinds.values()), dtype=float)
    for block in _blocks_between(roads, rng):
        kind = list(layout.kinds)[rng.choice(len(weights), p=weights / weights.sum())]
        BLOCKS[kind](plan, block)
    crossings = [
        road.crossings([r for r in roads if r.vertical != road.vertical]) for road in roads
    ]
    for i, road in enumerate(roads):
        add_road(plan, road)
        add_kerbside(plan, i, road, crossings[i], people=26 if theme == "town" else 9)
    for i, road in enumerate(roads):
        add_markings(plan, road, crossings[i])
    if layout.traffic:
        add_traffic(plan, roads, theme, layout.speed_mps, layout.traffic)
    world = plan.finish(roads)
    return as_thermal(world) if weather.thermal else world


def _blocks_between(roads: list[Road], rng: np.random.Generator) -> list[Area]:
    """Return the areas between the roads, long ones cut into pieces."""

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

    blocks: list[Area] = []
    for x0, x1 in gaps([r for r in roads if r.vertical]):
        for y0, y1 in gaps([r for r in roads if not r.vertical]):
            across = max(1, round((x1 - x0) / rng.uniform(45, 90)))
            down = max(1, round((y1 - y0) / rng.uniform(45, 90)))
            for xs in _pieces(x0, x1, across, rng):
                blocks += [(xs[0], y[0], xs[1], y[1]) for y in _pieces(y0, y1, down, rng)]
    return blocks


def _pieces(a: float, b: float, count: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    step = (b - a) / count
    inner = a + step * (np.arange(1, count) + rng.uniform(-0.2, 0.2, count - 1))
    cuts = [a, *inner, b]
    return [(p + 0.7, q - 0.7) for p, q in pairwise(cuts)]
