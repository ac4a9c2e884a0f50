"""Homographies between frames: warp points and boxes, chain them, take fractions of them.

A homography is float64 (3, 3) and maps pixels (x, y, 1) of one frame to those of a later one.
"""

from __future__ import annotations

import math

import numpy as np

from drone_kd.core.arrays import Float64Array

# The series of logarithm and exponential converge fast below this norm.
_SERIES_NORM = 0.5
_TERMS = 12
# Pixels per unit in which the entries of a homography are of similar size.
_UNIT_PX = 1000.0
_IDENTITY = np.eye(3)
_TO_UNIT = np.diag([1 / _UNIT_PX, 1 / _UNIT_PX, 1.0])
_TO_PX = np.diag([_UNIT_PX, _UNIT_PX, 1.0])
# Nearer to the horizon than this, a point has no usable position.
_MIN_DEPTH = 1e-3


def warp_points(homography: Float64Array, xy: Float64Array) -> Float64Array:
    """Return points (N, 2) in the other frame; NaN where they are at or beyond the horizon."""
    moved = xy @ homography[:, :2].T + homography[:, 2]
    depth = moved[:, 2:]
    visible = depth > _MIN_DEPTH
    warped: Float64Array = np.where(visible, moved[:, :2] / np.where(visible, depth, 1), np.nan)
    return warped


def jacobians(homography: Float64Array, xy: Float64Array) -> Float64Array:
    """Return the derivatives (N, 2, 2) of `warp_points` at points (N, 2)."""
    depth = xy @ homography[2, :2] + homography[2, 2]
    warped = warp_points(homography, xy)
    slope = homography[None, :2, :2] - warped[:, :, None] * homography[2, :2]
    derived: Float64Array = slope / np.where(depth > _MIN_DEPTH, depth, np.nan)[:, None, None]
    return derived


def stretch(jacobian: Float64Array, wh: Float64Array) -> Float64Array:
    """Return sizes (N, 2) of boxes after a motion with these Jacobians (N, 2, 2).

    The box is taken for the ellipse inside it: a small turn hardly changes its size, while the
    corners of the box would make it grow with every step.
    """
    grown: Float64Array = np.sqrt(((jacobian * wh[:, None, :]) ** 2).sum(2))
    return grown


def fraction(homography: Float64Array, part: float) -> Float64Array:
    """Return the motion after a part of the time (0.5: half way, 2: twice as far)."""
    log = logarithm(homography)
    if log is None:  # far from the identity, e.g. half a turn: no fraction is meaningful
        return homography if part >= 0.5 else _IDENTITY.copy()
    return exponential(log * part)


def logarithm(homography: Float64Array) -> Float64Array | None:
    """Return the logarithm, whose multiples are fractions of the motion; None: too large."""
    scaled = _TO_UNIT @ homography @ _TO_PX
    determinant = np.linalg.det(scaled)
    if not np.isfinite(determinant) or determinant <= 0:
        return None
    rest = scaled / np.cbrt(determinant) - _IDENTITY
    if np.linalg.norm(rest) > _SERIES_NORM:
        return None
    # -(-A)^n / n, by Horner's rule.
    log = np.zeros((3, 3))
    for n in range(_TERMS, 0, -1):
        log = rest @ (_IDENTITY / n - log)
    return log


def exponential(log: Float64Array) -> Float64Array:
    """Return the homography of a `logarithm`, with a lower right element of 1."""
    size = float(np.linalg.norm(log))
    halvings = math.ceil(math.log2(size / _SERIES_NORM)) if size > _SERIES_NORM else 0
    small = log / 2**halvings
    raised = _IDENTITY
    for n in range(_TERMS, 0, -1):
        raised = _IDENTITY + small @ raised / n
    for _ in range(halvings):
        raised = raised @ raised
    homography: Float64Array = _TO_PX @ raised @ _TO_UNIT
    return homography / homography[2, 2]
