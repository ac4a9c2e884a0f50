"""Single frames of many places, and flights over one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from drone_kd.simulation.scene.layouts import SCENES, build_scene
from drone_kd.simulation.scene.render import Camera, View, render, roll
from drone_kd.simulation.scene.sensor import Look, develop, sample_look
from drone_kd.simulation.scene.world import TILE_M, World, build_world

CLASSES = ("person", "car", "truck", "bus")
# Consecutive seeds share a place, as frames of one flight do: laying it out costs more than a
# picture of it. Seeds s with the same s // FRAMES_PER_WORLD are of the same world.
FRAMES_PER_WORLD = 20

_MIN_HEIGHT_M = 30.0


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture and what is on it.

    Attributes:
        image: uint8 (h, w, 3) BGR.
        xyxy: float32 (N, 4): left, top, right, bottom in pixels, from 0 to the image's width and
            height, around what is visible of each object without its shadow.
        class_ids: int64 (N,), index into CLASSES.
        ids: int64 (N,), an object's number, which it keeps during a plan.
        t_s: seconds since the flight began; 0 for a single frame.
    """

    image: np.ndarray
    xyxy: np.ndarray
    class_ids: np.ndarray
    ids: np.ndarray
    t_s: float


def draw_frame(seed: int, imgsz: int = 640) -> Frame:
    """Draw one square frame; the same seed and size give the same frame.

    Args:
        seed: 0 or more; see FRAMES_PER_WORLD.
        imgsz: side in pixels, at least 64. The field of view does not depend on it.

    Raises:
        ValueError: an argument is out of its range.
    """
    if seed < 0:
        raise ValueError(f"seed: expected 0 or more, got {seed}")
    if imgsz < 64:
        raise ValueError(f"imgsz: expected at least 64 px, got {imgsz}")
    world = _world(seed // FRAMES_PER_WORLD)
    rng = np.random.default_rng((1, seed))
    camera = _sample_camera(rng, imgsz)
    # Not everybody who parks here does so on the same day.
    present = ~world.optional | (rng.random(len(world.optional)) < rng.uniform(0.5, 1))
    view = render(world, camera, t_s=rng.uniform(0, 600), present=present)
    return _frame(view, develop(view.image, sample_look(rng), rng), 0.0)


@dataclass(frozen=True)
class FlightPlan:
    """How to fly over a place.

    Attributes:
        seed: 0 or more; of the place, the traffic and the weather.
        width, height: of the frames in pixels, at least 64 each.
        fps: frames per second of plan.
        scene: one of SCENES, along its main road; empty: anywhere over any place.
        speed_mps: of the drone over the ground.
        altitude_m: height above the ground; None: it wanders from 44 to 72 m.
        motion_px: length of the motion blur; None: as the weather of the seed has it.
        haze: share of the light that haze adds, 0 to 0.95; None: as the weather of the seed
            has it.
        rolling_ms: from the exposure of the first row of a frame to that of the last.

    Raises:
        ValueError: a value is out of its range.
    """

    seed: int = 0
    width: int = 1280
    height: int = 720
    fps: float = 10.0
    scene: str = ""
    speed_mps: float = 9.0
    altitude_m: float | None = None
    motion_px: float | None = None
    haze: float | None = None
    rolling_ms: float = 0.0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {self.seed}")
        if min(self.width, self.height) < 64:
            raise ValueError(
                f"size: expected at least 64 x 64 px, got {self.width} x {self.height}"
            )
        if not self.fps > 0:
            raise ValueError(f"fps: expected more than 0, got {self.fps}")
        if self.scene and self.scene not in SCENES:
            raise ValueError(f"scene: expected one of {', '.join(SCENES)}, got {self.scene!r}")
        for name, low, high in (
            ("speed_mps", 0.0, 100.0),
            ("altitude_m", 15.0, 150.0),
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


def fly(plan: FlightPlan) -> Iterator[Frame]:
    """Fly without end; frame n is of n / fps seconds.

    The camera wanders smoothly between nadir and oblique views. The same flight gives the same
    frames.
    """
    world = build_scene(plan.scene, plan.seed) if plan.scene else build_world(plan.seed)
    rng = np.random.default_rng((2, plan.seed))
    look = _look(plan, rng)
    x_m, y_m = rng.uniform(0, TILE_M, 2)
    course = rng.uniform(0, 2 * np.pi)
    phases = rng.uniform(0, 2 * np.pi, 4)
    # Amplitudes of heading and pitch: a camera that looks around, or one on a drone on its way.
    turn, nod = 0.9, 22.0
    if plan.scene:
        x_m, y_m = world.roads[0].points(y_m, 0.0)
        course, turn, nod = np.pi * (course > np.pi), 0.25, 12.0
    before = None
    n = 0
    while True:
        t_s = n / plan.fps
        # Incommensurable periods, so that no view ever comes back.
        sway = np.sin(2 * np.pi * t_s / np.array((43.0, 31.0, 57.0, 11.0)) + phases)
        heading = course + turn * sway[0]
        altitude_m = plan.altitude_m
        camera = Camera(
            x_m=x_m,
            y_m=y_m,
            height_m=58 + 14 * sway[2] if altitude_m is None else altitude_m,
            yaw=heading,
            pitch=np.radians(66 + nod * sway[1]),
            roll=0.02 * sway[3],
            focal_px=plan.focal_px,
            width=plan.width,
            height=plan.height,
        )
        view = render(world, camera, t_s)
        if plan.rolling_ms and before is not None:
            view = roll(view, _flow(before, camera) * plan.fps * plan.rolling_ms / 1000)
        yield _frame(view, develop(view.image, look, rng), t_s)
        before = camera
        # Along a road a drone keeps to its course where the camera looks to the side.
        ahead = course if plan.scene else heading
        x_m += np.sin(ahead) * plan.speed_mps / plan.fps
        y_m -= np.cos(ahead) * plan.speed_mps / plan.fps
        n += 1


def _look(plan: FlightPlan, rng: np.random.Generator) -> Look:
    look = sample_look(rng)
    if plan.scene == "night":  # a thermal camera's: soft, some grain, no colour, no daylight
        look = replace(
            look, gain=(1.0, 1.0, 1.0), gamma=1.0, haze=0.0, haze_bgr=(60.0, 60.0, 60.0)
        )
    if plan.motion_px is not None:
        look = replace(look, motion_px=plan.motion_px)
    if plan.haze is not None:
        look = replace(look, haze=plan.haze)
    return look


def _flow(before: Camera, after: Camera) -> np.ndarray:
    """How far the ground in the middle of the image moves from one view to the next: px (2,)."""
    middle = np.array([before.width / 2, before.height / 2])
    x, y, w = before.to_ground @ [*middle, 1]
    return after.project(np.array([x / w, y / w, 0.0]))[0] - middle


@lru_cache(maxsize=2)
def _world(seed: int) -> World:
    return build_world(seed)


def _sample_camera(rng: np.random.Generator, imgsz: int) -> Camera:
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
        focal_px=focal_px,
        width=imgsz,
        height=imgsz,
    )


def _frame(view: View, image: np.ndarray, t_s: float) -> Frame:
    return Frame(image, view.xyxy, view.class_ids, view.ids, t_s)
