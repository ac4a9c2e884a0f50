"""Trajectories: the camera's pose at any time, and flights by name.

    at = find_flight("orbit+gusts", start)
    pose = at(2.5)

To add a flight, add one function to FLIGHTS; to add a disturbance of any flight, one to
DISTURBANCES. Each draws its random numbers from its own stream.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

# Limits of the height above the ground in metres.
LOWEST_M, HIGHEST_M = 15.0, 150.0
# Where the plan gives no height.
_USUAL_M = 58.0
# A route that is summed up is straight within a step.
_STEP_S = 0.1
_CIRCLE_M = 40.0


@dataclass(frozen=True)
class Pose:
    """Where the camera is and looks: metres and radians, with the axes of `Camera`."""

    x_m: float
    y_m: float
    height_m: float
    yaw: float
    pitch: float
    roll: float = 0.0


Trajectory = Callable[[float], Pose]


@dataclass(frozen=True, eq=False)
class Start:
    """What all flights of a plan have in common."""

    x_m: float
    y_m: float
    course: float  # direction of flight in radians, from north (-y) towards east
    speed_mps: float
    height_m: float | None  # above the ground; None: the flight's own
    phases: np.ndarray  # float64 (4,), of slow movements
    seed: int
    on_road: bool  # the course is that of a road

    def ahead(self, distance_m: float, right_m: float = 0.0) -> tuple[float, float]:
        """Return x and y of a place ahead of the start and to the right of the course."""
        sin, cos = math.sin(self.course), math.cos(self.course)
        x_m = self.x_m + distance_m * sin + right_m * cos
        return x_m, self.y_m - distance_m * cos + right_m * sin

    def pose(self, t_s: float, pitch_deg: float, height_m: float | None = None) -> Pose:
        """Return the pose on a straight flight at constant speed."""
        x_m, y_m = self.ahead(self.speed_mps * t_s)
        height = height_m or self.height_m or _USUAL_M
        return Pose(x_m, y_m, height, self.course, math.radians(pitch_deg))


def _sweep(start: Start) -> Trajectory:
    """The camera sweeps slowly between nadir and oblique views and to both sides."""
    # Smaller on a drone that follows a road: it keeps its course while the camera turns.
    turn, nod = (0.25, 12.0) if start.on_road else (0.9, 22.0)
    route = [np.array([start.x_m, start.y_m])]

    def sway(t_s: float) -> np.ndarray:
        # Incommensurable periods, so that no view repeats.
        periods = np.array((43.0, 31.0, 57.0, 11.0))
        return np.asarray(np.sin(2 * np.pi * t_s / periods + start.phases))

    def place(t_s: float) -> tuple[float, float]:
        if start.on_road:
            return start.ahead(start.speed_mps * t_s)
        step = int(t_s / _STEP_S)
        while len(route) < step + 2:
            ahead = start.course + turn * sway((len(route) - 0.5) * _STEP_S)[0]
            direction = np.array([math.sin(ahead), -math.cos(ahead)])
            route.append(route[-1] + direction * start.speed_mps * _STEP_S)
        x_m, y_m = route[step] + (t_s / _STEP_S - step) * (route[step + 1] - route[step])
        return float(x_m), float(y_m)

    def at(t_s: float) -> Pose:
        yaw, pitch, height, roll = sway(t_s).tolist()
        return Pose(
            *place(t_s),
            height_m=start.height_m or _USUAL_M + 14 * height,
            yaw=start.course + turn * yaw,
            pitch=math.radians(66 + nod * pitch),
            roll=0.02 * roll,
        )

    return at


def _straight(start: Start) -> Trajectory:
    """Straight at constant height, the camera 60 degrees down."""
    return lambda t_s: start.pose(t_s, 60)


def _hover(start: Start) -> Trajectory:
    """In one place, the camera 60 degrees down."""
    return lambda t_s: start.pose(0, 60)


def _orbit(start: Start) -> Trajectory:
    """A circle around a place that stays in the middle of the image, 45 degrees down."""
    radius = start.height_m or _USUAL_M

    def at(t_s: float) -> Pose:
        angle = start.course + start.speed_mps * t_s / radius
        sin, cos = math.sin(angle), math.cos(angle)
        x_m, y_m = start.x_m - radius * sin, start.y_m + radius * cos
        return Pose(x_m, y_m, radius, angle, math.radians(45))

    return at


def _turns(start: Start) -> Trajectory:
    """A figure of eight: a full circle to the right, one to the left; the camera looks ahead."""

    def at(t_s: float) -> Pose:
        turned = start.speed_mps * t_s / _CIRCLE_M % (4 * math.pi)
        side = 1 if turned < 2 * math.pi else -1
        right = side * _CIRCLE_M * (1 - math.cos(turned))
        x_m, y_m = start.ahead(_CIRCLE_M * math.sin(turned), right)
        pose = start.pose(0, 55)
        return replace(pose, x_m=x_m, y_m=y_m, yaw=start.course + side * turned)

    return at


def _climb(start: Start) -> Trajectory:
    """Straight, between 0.4 and 1.6 times the height within a minute, 75 degrees down."""

    def at(t_s: float) -> Pose:
        height = (start.height_m or _USUAL_M) * (1 - 0.6 * math.cos(2 * math.pi * t_s / 60))
        return start.pose(t_s, 75, min(max(height, LOWEST_M), HIGHEST_M))

    return at


def _gimbal(start: Start) -> Trajectory:
    """Straight; the camera moves from nadir up to the horizon and back in 24 s."""
    return lambda t_s: start.pose(t_s, 51 + 39 * math.cos(2 * math.pi * t_s / 24))


def _horizon(start: Start) -> Trajectory:
    """Straight with the horizon in view, the camera 12 degrees down."""
    return lambda t_s: start.pose(t_s, 12)


FLIGHTS: dict[str, Callable[[Start], Trajectory]] = {
    "sweep": _sweep,
    "straight": _straight,
    "hover": _hover,
    "orbit": _orbit,
    "turns": _turns,
    "climb": _climb,
    "gimbal": _gimbal,
    "horizon": _horizon,
}


def _gusts(flight: Trajectory, rng: np.random.Generator) -> Trajectory:
    """Wind pushes the drone by some metres and turns the camera by up to some degrees."""
    return _shaken(flight, rng, (2.9, 5.3, 8.9, 14.7), (0.5, 0.5, 0.3, 0.012, 0.009, 0.012))


def _vibration(flight: Trajectory, rng: np.random.Generator) -> Trajectory:
    """Motors shake the camera at 20 to 50 Hz by about a milliradian."""
    return _shaken(flight, rng, (0.049, 0.037, 0.029, 0.021), (0, 0, 0, 0.0004, 0.0004, 0.0008))


DISTURBANCES = {"gusts": _gusts, "vibration": _vibration}


def _shaken(
    flight: Trajectory,
    rng: np.random.Generator,
    periods_s: tuple[float, ...],
    sizes: tuple[float, ...],
) -> Trajectory:
    """Add sums of sines: sizes of x, y, height, yaw, pitch and roll per sine."""
    phases = rng.uniform(0, 2 * np.pi, (len(sizes), len(periods_s)))

    def at(t_s: float) -> Pose:
        waves = np.sin(2 * np.pi * t_s / np.array(periods_s) + phases).sum(1)
        dx, dy, dz, yaw, pitch, roll = (waves * sizes).tolist()
        pose = flight(t_s)
        return Pose(
            pose.x_m + dx,
            pose.y_m + dy,
            max(pose.height_m + dz, LOWEST_M),
            pose.yaw + yaw,
            # Beyond nadir the image would be upside down.
            min(pose.pitch + pitch, math.pi / 2),
            pose.roll + roll,
        )

    return at


def split_flight(name: str) -> tuple[str, list[str]]:
    """Split the name of a flight, such as orbit+gusts, into flight and disturbances.

    Raises:
        ValueError: a part is unknown.
    """
    flight, *added = name.split("+")
    if flight not in FLIGHTS or not DISTURBANCES.keys() >= set(added):
        flights, more = ", ".join(FLIGHTS), " or ".join(f"+{key}" for key in DISTURBANCES)
        raise ValueError(f"flight: expected one of {flights}, then {more} or none, got {name!r}")
    return flight, added


def find_flight(name: str, start: Start) -> Trajectory:
    """Return the trajectory of a flight of FLIGHTS with DISTURBANCES, such as orbit+gusts.

    It does not depend on the frame rate or on the order of calls; times are 0 s or more.

    Raises:
        ValueError: unknown name.
    """
    flight, added = split_flight(name)
    trajectory = FLIGHTS[flight](start)
    for disturbance in added:
        rng = np.random.default_rng((start.seed, zlib.crc32(disturbance.encode())))
        trajectory = DISTURBANCES[disturbance](trajectory, rng)
    return trajectory
