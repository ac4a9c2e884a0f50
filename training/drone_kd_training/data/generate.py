# SPDX-License-Identifier: AGPL-3.0-or-later
"""Draw a procedural aerial data set in Ultralytics' layout.

    python -m training generate --output runs/drawn --train 2000 --val 200

The folder holds images/ and labels/ of both splits, data.yaml, and generated.json with the
arguments it was made with.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import yaml

from drone_kd.progress import Progress
from drone_kd.simulation.scene import CLASSES, FRAMES_PER_WORLD, Frame, draw_frame
from drone_kd_training.data.dataset import centre_and_size, label_lines, write_text

JPEG_QUALITY = 92
WORKERS = 2
_ARGUMENTS = "generated.json"
# Counts up when the pictures of the same arguments change.
_VERSION = 2


def generate(output: Path, train: int, val: int, imgsz: int = 640, seed: int = 0) -> Path:
    """Write a data set; the same arguments give the same pictures. Returns its data.yaml.

    The folder appears when it is complete. One that these very arguments made before is kept.
    No place is in both splits.

    Args:
        output: folder to make; it must not exist, or be empty.
        train, val: number of frames of each split, at least 1.
        imgsz: side of the square frames in pixels, at least 64.
        seed: 0 or more.

    Raises:
        ValueError: a number is out of its range.
        FileExistsError: the folder holds something else.
    """
    output = Path(output)
    for name, value, low, high in (
        ("train", train, 1, 10**9),
        ("val", val, 1, 10**9),
        ("imgsz", imgsz, 64, 4096),
        ("seed", seed, 0, 2**62),
    ):
        if not low <= value <= high:
            raise ValueError(f"{name}: expected {low} to {high}, got {value}")
    arguments = {
        "version": _VERSION,
        "train": train,
        "val": val,
        "imgsz": imgsz,
        "seed": seed,
    }
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if _read_arguments(output) == arguments:
            return output / "data.yaml"
        raise FileExistsError(
            f"{output} exists and holds something else: remove it or choose another folder"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        _draw(unfinished, {"train": train, "val": val}, imgsz, seed)
        write_data_yaml(unfinished)
        (unfinished / _ARGUMENTS).write_text(json.dumps(arguments) + "\n", encoding="utf-8")
        unfinished.chmod(0o755)
        unfinished.replace(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return output / "data.yaml"


def _read_arguments(output: Path) -> dict | None:
    try:
        return json.loads((output / _ARGUMENTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _jobs(counts: dict[str, int], seed: int) -> list[tuple[str, int, range]]:
    """(split, its first seed, frame numbers) per world, which one process lays out once."""
    jobs = []
    for number, (split, count) in enumerate(counts.items()):
        # 2**32 seeds for each split of each seed; rounded up to the first of a world.
        first = -(-((2 * seed + number) << 32) // FRAMES_PER_WORLD) * FRAMES_PER_WORLD
        for start in range(0, count, FRAMES_PER_WORLD):
            jobs.append((split, first, range(start, min(start + FRAMES_PER_WORLD, count))))
    return jobs


def _draw(folder: Path, counts: dict[str, int], imgsz: int, seed: int) -> None:
    draw = partial(_draw_world, folder, imgsz)
    # A fresh interpreter: a fork would copy the locks of the threads that torch has started.
    pool = ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn"), initializer=_one_thread)
    try:
        with Progress("Render", sum(counts.values()), "image") as progress:
            for written in pool.map(draw, _jobs(counts, seed)):
                progress.update(written)
    finally:
        pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    cv2.setNumThreads(1)


def _draw_world(folder: Path, imgsz: int, job: tuple[str, int, range]) -> int:
    split, first, frames = job
    for i in frames:
        write_drawn(folder, split, f"{i:06d}", draw_frame(first + i, imgsz))
    return len(frames)


def write_drawn(folder: Path, split: str, name: str, frame: Frame) -> None:
    """Write a drawn frame and its labels into a data set.

    Raises:
        OSError: it cannot be written.
    """
    for kind in ("images", "labels"):
        (folder / kind / split).mkdir(parents=True, exist_ok=True)
    image = folder / "images" / split / f"{name}.jpg"
    if not cv2.imwrite(str(image), frame.image, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)):
        raise OSError(f"{image} could not be written")
    height, width = frame.image.shape[:2]
    boxes = centre_and_size(frame.xyxy / [width, height, width, height])
    write_text(folder / "labels" / split / f"{name}.txt", label_lines(frame.class_ids, boxes))


def write_data_yaml(folder: Path) -> Path:
    """Write the data.yaml of drawn frames; returns it."""
    content = {"train": "images/train", "val": "images/val", "names": dict(enumerate(CLASSES))}
    write_text(folder / "data.yaml", yaml.safe_dump(content, sort_keys=False))
    return folder / "data.yaml"
