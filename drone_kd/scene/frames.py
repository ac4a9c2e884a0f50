"""Single frames of many places, and flights over one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from drone_kd.scene.render import Camera, View, render
from drone_kd.scene.sensor import develop, sample_look
from drone_kd.scene.world import TILE_M, World, build_world

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
        ids: int64 (N,), an object's number, which it keeps during a flight.
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


def fly(seed: int, width: int, height: int, fps: float, speed_mps: float = 9.0) -> Iterator[Frame]:
    """Fly over the world of one seed without end; frame n is of n / fps seconds.

    The camera wanders smoothly between nadir and oblique views. The same arguments give the same
    flight.

    Args:
        seed: 0 or more.
        width, height: of the frames in pixels, at least 64 each.
        fps: frames per second of flight.
        speed_mps: of the drone over the ground.

    Raises:
        ValueError: an argument is out of its range.
    """
    if seed < 0:
        raise ValueError(f"seed: expected 0 or more, got {seed}")
    if min(width, height) < 64:
        raise ValueError(f"size: expected at least 64 x 64 px, got {width} x {height}")
    if not fps > 0:
        raise ValueError(f"fps: expected more than 0, got {fps}")
    return _flight(seed, width, height, fps, speed_mps)


def _flight(seed: int, width: int, height: int, fps: float, speed_mps: float) -> Iterator[Frame]:
    world = build_world(seed)
    rng = np.random.default_rng((2, seed))
    look = sample_look(rng)
    x_m, y_m = rng.uniform(0, TILE_M, 2)
    course = rng.uniform(0, 2 * np.pi)
    phases = rng.uniform(0, 2 * np.pi, 4)
    n = 0
    while True:
        t_s = n / fps
        # Incommensurable periods, so that no view ever comes back.
        sway = np.sin(2 * np.pi * t_s / np.array((43.0, 31.0, 57.0, 11.0)) + phases)
        heading = course + 0.9 * sway[0]
        camera = Camera(
            x_m=x_m,
            y_m=y_m,
            height_m=58 + 14 * sway[2],
            yaw=heading,
            pitch=np.radians(66 + 22 * sway[1]),
            roll=0.02 * sway[3],
            focal_px=float(max(width, height)),
            width=width,
            height=height,
        )
        view = render(world, camera, t_s)
        yield _frame(view, develop(view.image, look, rng), t_s)
        x_m += np.sin(heading) * speed_mps / fps
        y_m -= np.cos(heading) * speed_mps / fps
        n += 1


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
