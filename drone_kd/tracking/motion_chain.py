"""Camera motion between any two times, from the motions between the newest frames."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from drone_kd.core.arrays import Float64Array
from drone_kd.tracking.ego_motion import Motion, Quality
from drone_kd.tracking.homography import exponential, fraction, logarithm

# Frames that are kept: over 2 s at 120 Hz, over 8 s at 30 Hz.
_FRAMES = 256
# Beyond the newest frame the camera goes on as in this time, over at least one step.
_RATE_NS = 250_000_000
# Variance in px² that a measured step adds, by quality; in frames 1280 px wide.
_STEP_VARIANCE = {Quality.OK: 0.05, Quality.DEGRADED: 2.0}
# Where the motion is not known its standard deviation grows with time: px/s, frames 1280 px wide.
_LOST_PX_PER_S, _EXTRAPOLATED_PX_PER_S = 600.0, 20.0


class Path(NamedTuple):
    """Camera motion from one time to another, and how well it is known."""

    homography: Float64Array  # (3, 3), from pixels at the first time to those at the second
    variance: float  # px² of a point, along x and along y


class _Step(NamedTuple):
    stamp_ns: int  # of the frame at its end
    homography: Float64Array
    variance: float
    is_measured: bool


class MotionChain:
    """Motions between the newest frames. `width`, `height`: of the frames in pixels."""

    def __init__(self, width: int, height: int) -> None:
        self._scale = max(width, height) / 1280
        self._steps: deque[_Step] = deque(maxlen=_FRAMES)
        self._rate: Float64Array = np.zeros((3, 3))  # logarithm of the motion in a nanosecond

    @property
    def oldest_ns(self) -> int | None:
        """Time of the oldest frame that is kept; None: there is none."""
        return self._steps[0].stamp_ns if self._steps else None

    @property
    def newest_ns(self) -> int | None:
        """Time of the newest frame; None: there is none."""
        return self._steps[-1].stamp_ns if self._steps else None

    def clear(self) -> None:
        """Forget all frames, e.g. when the camera's clock went back."""
        self._steps.clear()
        self._rate = np.zeros((3, 3))

    def add(self, motion: Motion) -> None:
        """Add the newest frame. A lost motion goes on as before, with a large variance."""
        if not self._steps:
            self._steps.append(_Step(motion.stamp_ns, np.eye(3), 0.0, False))
            return
        period = motion.stamp_ns - self._steps[-1].stamp_ns
        if motion.homography is None or motion.quality is Quality.LOST:
            deviation = _LOST_PX_PER_S * self._scale * period / 1e9
            homography = exponential(self._rate * period)
            self._steps.append(_Step(motion.stamp_ns, homography, deviation**2, False))
            return
        variance = _STEP_VARIANCE[motion.quality] * self._scale**2
        self._steps.append(_Step(motion.stamp_ns, motion.homography, variance, True))
        self._rate = self._mean_rate()

    def between(self, from_ns: int, to_ns: int) -> Path:
        """Return the motion from one time to a later one; before the oldest frame it stands still.

        Args:
            from_ns: not before the oldest frame.
            to_ns: not before `from_ns`; after the newest frame the motion is extrapolated.
        """
        homography, variance = np.eye(3), 0.0
        for before, step in pairwise(self._steps):
            start, end = max(from_ns, before.stamp_ns), min(to_ns, step.stamp_ns)
            if end <= start:
                continue
            part = (end - start) / (step.stamp_ns - before.stamp_ns)
            moved = step.homography if part == 1 else fraction(step.homography, part)
            homography = moved @ homography
            variance += step.variance * part
        newest = self._steps[-1].stamp_ns if self._steps else to_ns
        beyond = to_ns - max(newest, from_ns)
        if beyond > 0:
            homography = exponential(self._rate * beyond) @ homography
            variance += (_EXTRAPOLATED_PX_PER_S * self._scale * beyond / 1e9) ** 2
        return Path(homography / homography[2, 2], variance)

    def _mean_rate(self) -> Float64Array:
        """Return the mean logarithm per nanosecond over the newest measured steps."""
        total, span = np.zeros((3, 3)), 0
        for step, before in zip(
            reversed(self._steps), list(reversed(self._steps))[1:], strict=False
        ):
            log = logarithm(step.homography) if step.is_measured else None
            if log is None or (span and self._steps[-1].stamp_ns - before.stamp_ns > _RATE_NS):
                break
            total += log
            span += step.stamp_ns - before.stamp_ns
        return total / span if span else total
