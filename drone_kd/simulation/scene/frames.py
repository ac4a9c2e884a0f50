"""Single frames of many places, and flights over one place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count

import numpy as np

from drone_kd.simulation.scene.camera import Camera
from drone_kd.simulation.scene.render import View, render, roll
from drone_kd.simulation.scene.scenes import build_scene, find_scene
from drone_kd.simulation.scene.sensor import Conditions, apply_sensor
from drone_kd.simulation.scene.shapes import TILE_M
from drone_kd.simulation.scene.town import build_world
from drone_kd.simulation.scene.trajectory import (
    HIGHEST_M,
    LOWEST_M,
    Start,
    find_flight,
    split_flight,
)
from drone_kd.simulation.scene.weather import WEATHERS, find_weather
from drone_kd.simulation.scene.world import World

CLASSES = ("person", "car", "truck", "bus")
# Consecutive seeds share a world, since building one costs more than rendering an image of it:
# seeds with the same seed // FRAMES_PER_WORLD show the same world.
FRAMES_PER_WORLD = 20

_MIN_HEIGHT_M = 30.0


@dataclass(frozen=True, eq=False)
class Frame(View):
    """A view as a camera takes it, `t_s` seconds after the start; 0 for a single frame."""

    t_s: float


def draw_frame(seed: int, imgsz: int = 640, zoom: float = 1.0, thermal: bool = False) -> Frame:
    """Render one square frame; the same arguments give the same frame.

    For `seed` see FRAMES_PER_WORLD; the field of view does not depend on `imgsz`, in pixels.
    `zoom`, 1 to 4, multiplies the focal length, and so the size of the objects. `thermal`: the
    place as a thermal camera shows it at night.

    Raises:
        ValueError: a seed below 0, a size below 64 or another zoom.
    """
    if seed < 0:
        raise ValueError(f"seed: expected 0 or more, got {seed}")
    if imgsz < 64:
        raise ValueError(f"imgsz: expected at least 64 px, got {imgsz}")
    if not 1 <= zoom <= 4:
        raise ValueError(f"zoom: expected 1 to 4, got {zoom:g}")
    world = _world(seed // FRAMES_PER_WORLD, thermal)
    rng = np.random.default_rng((1, seed))
    camera = _sample_camera(rng, imgsz, zoom)
    # Parked vehicles and people differ between days.
    present = ~world.optional | (rng.random(len(world.optional)) < rng.uniform(0.5, 1))
    view = render(world, camera, t_s=rng.uniform(0, 600), present=present)
    conditions = world.weather.conditions(rng)
    return _frame(view, apply_sensor(view.image, conditions, rng), 0.0)


@dataclass(frozen=True)
class FlightPlan:
    """Settings of a flight over one place.

    Attributes:
        seed: 0 or more; selects place, traffic and weather.
        width, height: frame size in pixels, at least 64 each.
        fps: frames per second.
        scene: one of SCENES, flown along its main road; empty: a random place.
        weather: one of WEATHERS; empty: the scene's own. It changes neither place nor route.
        flight: one of FLIGHTS, with any DISTURBANCES added: orbit+gusts.
        speed_mps: speed over the ground.
        altitude_m: height above the ground; None: the flight's own.
        motion_px: length of the motion blur; None: sampled from the seed.
        haze: share of the light that haze adds, 0 to 0.95; None: sampled from the seed.
        rolling_ms: time between the exposure of the first and of the last row.

    Raises:
        ValueError: a value is out of its range.
    """

    seed: int = 0
    width: int = 1280
    height: int = 720
    fps: float = 10.0
    scene: str = ""
    weather: str = ""
    flight: str = "sweep"
    speed_mps: float = 9.0
    altitude_m: float | None = None
    motion_px: float | None = None
    haze: float | None = None
    rolling_ms: float = 0.0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {self.seed}")
        if min(self.width, self.height) < 64:
            size = f"{self.width} x {self.height}"
            raise ValueError(f"size: expected at least 64 x 64 px, got {size}")
        if not self.fps > 0:
            raise ValueError(f"fps: expected more than 0, got {self.fps}")
        if self.scene:
            find_scene(self.scene)
        if self.weather:
            find_weather(self.weather)
        split_flight(self.flight)
        for name, low, high in (
            ("speed_mps", 0.0, 100.0),
            ("altitude_m", LOWEST_M, HIGHEST_M),
            ("motion_px", 0.0, 64.0),
            ("haze", 0.0, 0.95),
            ("rolling_ms", 0.0, 100.0),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name}: expected {low:g} to {high:g}, got {value}")

    @property
    def focal_px(self) -> float:
        """Focal length in pixels; the principal point is the middle of the frame."""
        return float(max(self.width, self.height))


class SceneFrames:
    """The frames of a flight at any time.

    The route depends on seed, scene and flight alone: plans that differ in rate, size or weather
    show the same ground at the same time.
    """

    def __init__(self, plan: FlightPlan) -> None:
        self._plan = plan
        if plan.scene:
            self._world = build_scene(plan.scene, plan.seed, plan.weather)
        else:
            self._world = build_world(plan.seed, weather=find_weather(plan.weather or "clear"))
        rng = np.random.default_rng((2, plan.seed))
        self._conditions = _conditions(plan, self._world.weather.conditions(rng))
        self._trajectory = find_flight(plan.flight, self._start(rng))

    def at(self, t_s: float, number: int = 0) -> Frame:
        """Render the scene `t_s` seconds after the start.

        `number` of the frame, 0 or more, selects the sensor's noise.

        Raises:
            ValueError: a time below 0 or not finite.
        """
        if not 0 <= t_s < np.inf:
            raise ValueError(f"t_s: expected 0 or more seconds, got {t_s}")
        camera = self._camera(t_s)
        view = render(self._world, camera, t_s)
        if self._plan.rolling_ms:
            # Rows are read one after the other, the first at the frame's time.
            view = roll(view, _flow(camera, self._camera(t_s + self._plan.rolling_ms / 1000)))
        rng = np.random.default_rng((3, self._plan.seed, number))
        return _frame(view, apply_sensor(view.image, self._conditions, rng), t_s)

    def _start(self, rng: np.random.Generator) -> Start:
        plan = self._plan
        x_m, y_m = rng.uniform(0, TILE_M, 2)
        course = rng.uniform(0, 2 * np.pi)
        phases = rng.uniform(0, 2 * np.pi, 4)
        if plan.scene:
            x_m, y_m = self._world.roads[0].points(y_m, 0.0)
            course = np.pi * (course > np.pi)
        return Start(
            x_m=float(x_m),
            y_m=float(y_m),
            course=float(course),
            speed_mps=plan.speed_mps,
            height_m=plan.altitude_m,
            phases=phases,
            seed=plan.seed,
            on_road=bool(plan.scene),
        )

    def _camera(self, t_s: float) -> Camera:
        plan, pose = self._plan, self._trajectory(t_s)
        return Camera(
            x_m=pose.x_m,
            y_m=pose.y_m,
            height_m=pose.height_m,
            yaw=pose.yaw,
            pitch=pose.pitch,
            roll=pose.roll,
            focal_px=plan.focal_px,
            width=plan.width,
            height=plan.height,
        )


def fly(plan: FlightPlan) -> Iterator[Frame]:
    """Yield the frames of a flight without end; frame n shows the scene at n / fps seconds.

    The same plan gives the same frames.
    """
    frames = SceneFrames(plan)
    for number in count():
        yield frames.at(number / plan.fps, number)


def _conditions(plan: FlightPlan, conditions: Conditions) -> Conditions:
    """Return the conditions with what the plan asks for."""
    if plan.motion_px is not None:
        conditions = replace(conditions, motion_px=plan.motion_px)
    if plan.haze is not None:
        conditions = replace(conditions, haze=plan.haze)
    return conditions


def _flow(before: Camera, after: Camera) -> np.ndarray:
    """Return the motion in pixels (2,) of the ground in the middle of the image."""
    middle = np.array([before.width / 2, before.height / 2])
    x, y, w = before.to_ground @ [*middle, 1]
    return after.project(np.array([x / w, y / w, 0.0]))[0] - middle


@lru_cache(maxsize=2)
def _world(seed: int, thermal: bool) -> World:
    return build_world(seed, weather=WEATHERS["night" if thermal else "clear"])


def _sample_camera(rng: np.random.Generator, imgsz: int, zoom: float = 1.0) -> Camera:
    focal_px = imgsz * rng.uniform(0.8, 1.4)
    pitch = np.radians(rng.uniform(80, 90) if rng.random() < 0.42 else rng.uniform(33, 78))
    half_view = np.arctan(0.5 * imgsz / focal_px)
    # The far edge stays well below the horizon.
    pitch = max(pitch, half_view + np.radians(11))
    # Of the middle of the image, in metres per pixel of a 640 px frame.
    low, high = (0.06, 0.1) if rng.random() < 0.45 else (0.1, 0.26)
    gsd = low * (high / low) ** rng.random() * 640 / imgsz
    x_m, y_m = rng.uniform(0, TILE_M, 2)
    return Camera(
        x_m=x_m,
        y_m=y_m,
        height_m=max(gsd * focal_px * np.sin(pitch), _MIN_HEIGHT_M),
        yaw=rng.uniform(0, 2 * np.pi),
        pitch=pitch,
        roll=rng.normal(0, 0.02),
        focal_px=focal_px * zoom,
        width=imgsz,
        height=imgsz,
    )


def _frame(view: View, image: np.ndarray, t_s: float) -> Frame:
    return Frame(image, view.xyxy, view.class_ids, view.ids, t_s)
