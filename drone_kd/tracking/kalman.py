"""Kalman filters of many boxes at once: position and velocity over the ground, size.

Position x, y and velocity over the ground vx, vy are one state, in pixels of the frame in which
the objects were last seen; the logarithms of width and height are filtered each for itself.
Motions of the camera are applied exactly, by the homography and its Jacobian.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from drone_kd.core.arrays import BoolArray, Float64Array, Int64Array
from drone_kd.tracking.homography import jacobians, stretch, warp_points
from drone_kd.tracking.motion_chain import Path

# What noise alone gives a squared normalised velocity, with 2 degrees of freedom.
_NOISE = 2.0


@dataclass(frozen=True)
class Noise:
    """Settings of the filter. Sizes are sqrt(width x height) of the object."""

    position: float = 0.05  # standard deviation of a detection's middle, in sizes
    position_px: float = 0.7  # and in pixels, added
    size: float = 0.06  # standard deviation of the logarithm of a detection's width and height
    velocity: float = 3.0  # of a new object, in sizes per second
    acceleration: float = 0.8  # in sizes per second² (white noise)
    size_change: float = 0.15  # of the logarithms of width and height, per square root of a second


@dataclass(frozen=True, eq=False)
class States:
    """States of N boxes; functions of this module take one and return a new one."""

    mean: Float64Array  # (N, 4): x, y of the middle in px, vx, vy over the ground in px/s
    covariance: Float64Array  # (N, 4, 4)
    log_size: Float64Array  # (N, 2), of width and height in px
    size_variance: Float64Array  # (N, 2)

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, index: BoolArray | Int64Array | slice) -> States:
        return States(*(getattr(self, field.name)[index] for field in fields(self)))

    @property
    def wh(self) -> Float64Array:
        """Width and height (N, 2) in pixels."""
        sizes: Float64Array = np.exp(self.log_size)
        return sizes

    @property
    def xyxy(self) -> Float64Array:
        """Boxes (N, 4) in pixels."""
        half = self.wh / 2
        return np.hstack([self.mean[:, :2] - half, self.mean[:, :2] + half])


def new(xyxy: Float64Array, noise: Noise) -> States:
    """Return the states of boxes (N, 4) seen for the first time; at least one pixel wide."""
    wh = np.maximum(xyxy[:, 2:] - xyxy[:, :2], 1.0)
    middle = (xyxy[:, :2] + xyxy[:, 2:]) / 2
    size = np.sqrt(wh.prod(1))
    covariance = np.zeros((len(xyxy), 4, 4))
    place, speed = _position_variance(size, noise), (noise.velocity * size) ** 2
    for axis, variance in enumerate((place, place, speed, speed)):
        covariance[:, axis, axis] = variance
    sizes = np.full((len(xyxy), 2), noise.size**2)
    return States(np.hstack([middle, np.zeros_like(middle)]), covariance, np.log(wh), sizes)


def join(first: States, second: States) -> States:
    """Return both, one after the other."""
    columns = [field.name for field in fields(States)]
    return States(*(np.concatenate([getattr(first, c), getattr(second, c)]) for c in columns))


def predict(states: States, seconds: float, path: Path, noise: Noise) -> States:
    """Return the states after a time in which the camera moved along a path.

    A box that the camera no longer sees, beyond the horizon, becomes NaN.
    """
    n = len(states)
    transition = np.eye(4)
    transition[0, 2] = transition[1, 3] = seconds
    mean = states.mean @ transition.T
    covariance = transition @ states.covariance @ transition.T
    # White noise of the acceleration, per axis (Bar-Shalom 2001, 6.2.2).
    power = (noise.acceleration**2 * np.exp(states.log_size.sum(1)))[:, None, None]
    block = np.array([[seconds**3 / 3, seconds**2 / 2], [seconds**2 / 2, seconds]])
    covariance = covariance + power * np.kron(block, np.eye(2))
    slope = jacobians(path.homography, mean[:, :2])
    both = np.zeros((n, 4, 4))
    both[:, :2, :2] = both[:, 2:, 2:] = slope
    covariance = both @ covariance @ both.transpose(0, 2, 1)
    covariance[:, 0, 0] += path.variance
    covariance[:, 1, 1] += path.variance
    velocity = (slope @ mean[:, 2:, None])[..., 0]
    moved = np.hstack([warp_points(path.homography, mean[:, :2]), velocity])
    log_size = np.log(stretch(slope, states.wh))
    return States(
        moved, covariance, log_size, states.size_variance + noise.size_change**2 * seconds
    )


def stretched(states: States, xyxy: Float64Array) -> States:
    """Return the states with larger boxes (N, 4), whose new sides are guesses.

    The guess adds to the uncertainty of place and size.
    """
    mean, covariance = states.mean.copy(), states.covariance.copy()
    wh = xyxy[:, 2:] - xyxy[:, :2]
    added = np.where(wh > 1, wh - states.wh, 0.0)
    mean[:, :2] = (xyxy[:, :2] + xyxy[:, 2:]) / 2
    covariance[:, (0, 1), (0, 1)] += (added / 2) ** 2
    log_size = np.log(np.maximum(wh, 1.0))
    size_variance = states.size_variance + ((log_size - states.log_size) / 2) ** 2
    return States(mean, covariance, log_size, size_variance)


def update(states: States, xyxy: Float64Array, noise: Noise) -> States:
    """Return the states after a detection (N, 4) of each box."""
    wh = np.maximum(xyxy[:, 2:] - xyxy[:, :2], 1.0)
    middle = (xyxy[:, :2] + xyxy[:, 2:]) / 2
    innovation = middle - states.mean[:, :2]
    gain = states.covariance[:, :, :2] @ np.linalg.inv(innovation_covariance(states, noise))
    mean = states.mean + (gain @ innovation[..., None])[..., 0]
    covariance = states.covariance - gain @ states.covariance[:, :2, :]
    covariance = (covariance + covariance.transpose(0, 2, 1)) / 2
    size_gain = states.size_variance / (states.size_variance + noise.size**2)
    log_size = states.log_size + size_gain * (np.log(wh) - states.log_size)
    return States(mean, covariance, log_size, (1 - size_gain) * states.size_variance)


def innovation_covariance(states: States, noise: Noise) -> Float64Array:
    """Return the covariance (N, 2, 2) of a detection's middle around the predicted one, in px²."""
    variance = _position_variance(np.exp(states.log_size.mean(1)), noise)
    total: Float64Array = states.covariance[:, :2, :2] + variance[:, None, None] * np.eye(2)
    return total


def _position_variance(size: Float64Array, noise: Noise) -> Float64Array:
    variance: Float64Array = (noise.position * size) ** 2 + noise.position_px**2
    return variance


def without_noise_in_velocity(states: States) -> States:
    """Return states whose velocities are shrunk by what is noise in them, down to 0.

    As the positive part of James and Stein's estimator does (1961): of a parked car remains
    nothing, of a car that drives almost all.
    """
    mean, speed = states.mean.copy(), states.mean[:, 2:]
    inverse = np.linalg.inv(states.covariance[:, 2:, 2:])
    certainty = np.einsum("ni,nij,nj->n", speed, inverse, speed)
    part = np.maximum(1 - _NOISE / np.maximum(certainty, 1e-9), 0)
    mean[:, 2:] *= part[:, None]
    return States(mean, states.covariance, states.log_size, states.size_variance)
