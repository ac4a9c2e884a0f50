"""Blocks of single scenes: wilderness, crowded square, landing pad.

A site draws from `WorldPlan.rng` alone, as all blocks do, so a new one changes no other scene.
"""

from __future__ import annotations

import numpy as np

from drone_kd.simulation.scene.plan import WorldPlan
from drone_kd.simulation.scene.shapes import Area, blob, rectangle


def wilderness(plan: WorldPlan, block: Area) -> None:
    """Heath with rocks and thickets; few people, most of them lying, some half under a tree."""
    rng = plan.rng
    x0, y0, x1, y1 = block
    plan.fill(rectangle(*block), "meadow", "scrub", "grass")
    for _ in range(rng.poisson(7)):
        x, y = rng.uniform((x0, y0), (x1, y1))
        plan.fill(blob(rng, x, y, rng.uniform(2, 11)), "scrub", "soil", "gravel", "dirt")
    for _ in range(int((x1 - x0) * (y1 - y0) / rng.uniform(90, 300))):
        radius = rng.uniform(0.7, 3.6)
        x, y = rng.uniform((x0, y0), (x1, y1))
        plan.tree(x, y, radius, radius * rng.uniform(1.5, 2.8))
    for _ in range(1 + rng.poisson(1.5)):
        x, y = rng.uniform((x0, y0), (x1, y1))
        lies = rng.random() < 0.7
        plan.stand(plan.pick("lying" if lies else "person"), x, y, rng.uniform(0, 6.3))
        if rng.random() < 0.5:
            # Its crown covers about half of the person from above.
            radius, angle = rng.uniform(1.2, 2.4), rng.uniform(0, 6.3)
            place = (x + radius * np.cos(angle), y + radius * np.sin(angle))
            plan.tree(*place, radius, radius * rng.uniform(1.5, 2.2))
    for _ in range(rng.poisson(5)):
        x, y = rng.uniform((x0, y0), (x1, y1))
        plan.stand(plan.pick("clutter"), x, y, rng.uniform(0, 6.3), optional=False)


def crowd(plan: WorldPlan, block: Area) -> None:
    """A square with a stage: hundreds of people, densest in front of it."""
    rng = plan.rng
    x0, y0, x1, y1 = block
    plan.fill(rectangle(*block), "pavement", "brick", "grass")
    middle = (x0 + x1) / 2
    plan.building((middle, y0 + 5), (min(0.5 * (x1 - x0), 18), 7), 0, rng.uniform(3, 6))
    for _ in range(int(min((x1 - x0) * (y1 - y0) / 14, 260))):
        x = middle + rng.normal(0, (x1 - x0) / 5)
        y = y0 + 10 + rng.exponential((y1 - y0) / 4)
        if x0 < x < x1 and y < y1:
            # Most look at the stage.
            heading = rng.normal(-np.pi / 2, 0.5) if rng.random() < 0.8 else rng.uniform(0, 6.3)
            plan.stand(plan.pick("person"), x, y, heading)
    for x in np.arange(x0 + 3, x1 - 3, rng.uniform(5, 9)).tolist():
        plan.stand(plan.pick("kiosk"), x, y1 - 2, rng.normal(0, 0.1), optional=False)


def landing_pad(plan: WorldPlan, block: Area) -> None:
    """A concrete pad with an H in a circle, a lamp, boxes and some people."""
    rng = plan.rng
    x0, y0, x1, y1 = block
    plan.fill(rectangle(*block), "grass", "meadow", "gravel")
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    half = min(x1 - x0, y1 - y0, 24) / 2 - 2
    plan.fill(rectangle(x - half, y - half, x + half, y + half), "concrete", "lot")
    white = (232, 232, 228)
    angles = np.linspace(0, 2 * np.pi, 49)
    ring = [0.8 * half * np.stack([np.cos(angles), np.sin(angles)], -1) * k for k in (1, 0.92)]
    quads = np.stack([ring[0][:-1], ring[0][1:], ring[1][1:], ring[1][:-1]], 1)
    plan.mark(quads + [x, y], white)
    arm, width = 0.42 * half, 0.11 * half
    bars = [rectangle(s * arm - width, -arm, s * arm + width, arm) for s in (-0.7, 0.7)]
    plan.mark(np.array([*bars, rectangle(-0.7 * arm, -width, 0.7 * arm, width)]) + [x, y], white)
    plan.stand(plan.pick("lamp"), x + half + 1, y - half, rng.uniform(0, 6.3), optional=False)
    for _ in range(rng.poisson(5)):
        left, top = rng.uniform((x0, y0), (x1, y1))
        plan.stand(plan.pick("clutter"), left, top, rng.uniform(0, 6.3), optional=False)
    for _ in range(2 + rng.poisson(4)):
        left, top = (x, y) + rng.uniform(-half - 4, half + 4, 2)
        plan.stand(plan.pick("person"), left, top, rng.uniform(0, 6.3))
    if rng.random() < 0.7:
        plan.stand(plan.pick("car"), x - half - 4, y, np.pi / 2)
