# SPDX-License-Identifier: AGPL-3.0-or-later
"""Render a synthetic aerial data set in Ultralytics' layout.

    drone-kd generate --output runs/synthetic --train 2000 --val 200

The folder holds images/ and labels/ of both splits, data.yaml, and generated.json with the
arguments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from drone_kd.files import atomic_folder
from drone_kd.parsing import ParseError, read_json
from drone_kd.progress import Progress
from drone_kd.simulation.scene import CLASSES, FRAMES_PER_WORLD, Frame, draw_frame
from drone_kd_training.data.dataset import centre_and_size, label_lines
from drone_kd_training.data.folders import open_new, real_folder, write_image

# CLASSES begins with person; the others are vehicles.
PERSON_OR_VEHICLE = ("person", "vehicle")
JPEG_QUALITY = 92
WORKERS = 2
_ARGUMENTS, _ARGUMENTS_BYTES = "generated.json", 10_000
# Incremented when the same arguments give other images.
_VERSION = 2


def generate(
    output: Path,
    train: int,
    val: int,
    imgsz: int = 640,
    seed: int = 0,
    zoom: float = 1.0,
    thermal: bool = False,
    vehicles: bool = False,
) -> Path:
    """Render a data set in a new or empty folder; return its data.yaml.

    The same arguments give the same images. The folder appears when it is complete; one that the
    same arguments made before is kept. No place is in both splits. ``train``, ``val``: number of
    images, at least 1; ``imgsz``: side of the square images in pixels, 64 to 4096; ``seed``: 0 or
    more; ``zoom``: 1 to 4, and ``thermal``: see `draw_frame`; ``vehicles``: label cars, trucks and
    buses as one class. Raises ValueError if a number is out of its range, FileExistsError if the
    folder holds something else.
    """
    output = Path(output)
    numbers = {"train": train, "val": val, "imgsz": imgsz, "seed": seed, "zoom": zoom}
    arguments = {"version": _VERSION, **numbers, "thermal": thermal, "vehicles": vehicles}
    ranges = {"train": (1, 10**9), "val": (1, 10**9), "imgsz": (64, 4096), "seed": (0, 2**62),
              "zoom": (1, 4)}  # fmt: skip
    for name, (low, high) in ranges.items():
        if not low <= numbers[name] <= high:
            raise ValueError(f"{name}: expected {low} to {high}, got {numbers[name]}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if _read_arguments(output) == arguments:
            return output / "data.yaml"
        raise FileExistsError(
            f"{output} exists and holds something else: remove it or choose another folder"
        )
    names = PERSON_OR_VEHICLE if vehicles else CLASSES
    draw = partial(_draw, len(names), imgsz=imgsz, zoom=zoom, thermal=thermal)
    with atomic_folder(output) as folder:
        _render(folder, {"train": train, "val": val}, seed, draw)
        write_data_yaml(folder, names)
        (folder / _ARGUMENTS).write_text(json.dumps(arguments) + "\n", encoding="utf-8")
    return output / "data.yaml"


def _read_arguments(output: Path) -> dict | None:
    try:
        # Earlier versions had none of these.
        return {
            "zoom": 1,
            "thermal": False,
            "vehicles": False,
            **read_json(output / _ARGUMENTS, _ARGUMENTS_BYTES),
        }
    except (ParseError, TypeError):
        return None


def _jobs(counts: dict[str, int], seed: int) -> Iterator[tuple[str, int, range]]:
    """Yield (split, first seed of the split, frame numbers) per world: one process builds it."""
    for number, (split, count) in enumerate(counts.items()):
        # 2**32 seeds for each split of each seed; rounded up to the first of a world.
        first = -(-((2 * seed + number) << 32) // FRAMES_PER_WORLD) * FRAMES_PER_WORLD
        for start in range(0, count, FRAMES_PER_WORLD):
            yield split, first, range(start, min(start + FRAMES_PER_WORLD, count))


def _render(folder: Path, counts: dict[str, int], seed: int, draw: Callable[[int], Frame]) -> None:
    render = partial(_render_world, folder, draw)
    # spawn: a fork would copy the locks of the threads that torch has started.
    pool = ProcessPoolExecutor(WORKERS, get_context("spawn"), cv2.setNumThreads, (1,))
    try:
        with Progress("Render", sum(counts.values()), "image") as progress:
            for written in pool.map(render, _jobs(counts, seed)):
                progress.update(written)
    finally:
        pool.shutdown(cancel_futures=True)


def _render_world(folder: Path, draw: Callable[[int], Frame], job: tuple[str, int, range]) -> int:
    split, first, frames = job
    for i in frames:
        write_drawn(folder, split, f"{i:06d}", draw(first + i))
    return len(frames)


def _draw(classes: int, seed: int, **camera: Any) -> Frame:
    """Render a frame; class ids beyond the last class become the last one."""
    frame = draw_frame(seed, **camera)
    return replace(frame, class_ids=np.minimum(frame.class_ids, classes - 1))


def write_drawn(folder: Path, split: str, name: str, frame: Frame) -> None:
    """Write a synthetic image and its labels into a data set.

    OSError if it cannot be written, DataError if a folder of the data set is a link.
    """
    for kind in ("images", "labels"):
        real_folder(real_folder(folder / kind) / split)
    write_image(folder / "images" / split / f"{name}.jpg", frame.image, JPEG_QUALITY)
    height, width = frame.image.shape[:2]
    boxes = centre_and_size(frame.xyxy / [width, height, width, height])
    with open_new(folder / "labels" / split / f"{name}.txt") as labels:
        labels.write(label_lines(frame.class_ids, boxes))


def write_data_yaml(folder: Path, names: tuple[str, ...] = CLASSES) -> Path:
    """Write the data.yaml of a synthetic data set; return its path."""
    content = {"train": "images/train", "val": "images/val", "names": dict(enumerate(names))}
    path = folder / "data.yaml"
    with open_new(path) as file:
        yaml.safe_dump(content, file, sort_keys=False)
    return path
