"""Roads as curves across the tile: course, outline and crossings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from drone_kd.simulation.scene.shapes import TILE_M

# Least number of lanes in each direction, and the first number that is too large.
_LANES = {"town": (1, 4), "suburb": (1, 2), "industrial": (1, 3), "rural": (1, 2)}


@dataclass(frozen=True)
class Road:
    """A road across the tile: its centre is offset + amplitude * sin(2 pi s / TILE_M + phase).

    s runs along y if `vertical`, else along x. Lengths in metres.
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
        """Distance from the centre to the kerb."""
        return self.lanes * self.lane_m + 0.4

    def points(self, s: ArrayLike, lateral: ArrayLike) -> np.ndarray:
        """Points (..., 2) at `s` along the road and `lateral` metres to the right of +s."""
        s, lateral = np.asarray(s), np.asarray(lateral)
        angle = 2 * np.pi * s / TILE_M + self.phase
        slope = self.amplitude_m * 2 * np.pi / TILE_M * np.cos(angle)
        norm = np.hypot(1, slope)
        centre = self.offset_m + self.amplitude_m * np.sin(angle)
        # Right of +x (east) is +y (south); right of +y is -x.
        if self.vertical:
            return np.stack([centre - lateral / norm, s + lateral * slope / norm], -1)
        return np.stack([s - lateral * slope / norm, centre + lateral / norm], -1)

    def heading(self, s: ArrayLike) -> np.ndarray:
        """Direction of +s in radians from east towards south."""
        angle = 2 * np.pi * np.asarray(s) / TILE_M + self.phase
        slope = self.amplitude_m * 2 * np.pi / TILE_M * np.cos(angle)
        return np.arctan2(1, slope) if self.vertical else np.arctan2(slope, 1)

    def ribbon(self, s: np.ndarray, left: float, right: float) -> np.ndarray:
        """Outline (2 * len(s), 2) of the lane between two lateral distances."""
        return np.concatenate([self.points(s, left), self.points(s[::-1], right)])

    def dashes(self, s: ArrayLike, length: float, left: ArrayLike, right: ArrayLike) -> np.ndarray:
        """Quadrangles (..., 4, 2) from s to s + length and from left to right of the road."""
        s, left, right = np.broadcast_arrays(s, left, right)
        ends = np.stack([s, s + length, s + length, s], -1)
        return self.points(ends, np.stack([left, left, right, right], -1))

    def crossings(self, others: Sequence[Road]) -> list[tuple[float, float]]:
        """Crossings with roads of the other direction: (s of the centre, half the gap)."""
        found = []
        for other in others:
            s = other.offset_m
            for _ in range(4):
                across = self.points(s, 0.0)
                s = other.points(across[0 if self.vertical else 1], 0.0)[1 if self.vertical else 0]
            found.append((float(s), other.half_m))
        return found


def away_from(s: ArrayLike, crossings: Sequence[tuple[float, float]], margin: float) -> np.ndarray:
    """Select places along a road that are more than `margin` from all crossings: bool like s."""
    keep = np.ones(np.shape(s), bool)
    for centre, half_gap in crossings:
        distance = (np.asarray(s) - centre + TILE_M / 2) % TILE_M - TILE_M / 2
        keep &= np.abs(distance) > half_gap + margin
    return keep


def sample_roads(rng: np.random.Generator, theme: str) -> list[Road]:
    """Sample the roads of a theme, one or two in each direction."""
    roads = []
    most = 2 if theme in ("rural", "industrial") else 3
    for vertical in (True, False):
        count = int(rng.integers(1, most))
        first = rng.uniform(0, TILE_M)
        roads += [
            Road(
                vertical=vertical,
                offset_m=first + (i + rng.uniform(-0.12, 0.12)) * TILE_M / count,
                amplitude_m=0.0 if rng.random() < 0.4 else rng.uniform(1.5, 9),
                phase=rng.uniform(0, 2 * np.pi),
                lanes=int(rng.integers(*_LANES[theme])),
                lane_m=rng.uniform(2.9, 3.6),
                sidewalk_m=0.0 if theme == "rural" else rng.uniform(1.6, 4.2),
            )
            for i in range(count)
        ]
    return roads
