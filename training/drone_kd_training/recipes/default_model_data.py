# SPDX-License-Identifier: AGPL-3.0-or-later
"""Data of the default model's recipe: training lists, and the test sets that models share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from drone_kd.files import atomic_folder, write_text
from drone_kd.media.image_files import open_video, read_video
from drone_kd_training.data.dataset import (
    DataError,
    centre_and_size,
    image_paths,
    label_lines,
    load_data,
    read_sample,
    write_list,
)
from drone_kd_training.data.folders import empty_folder, write_image
from drone_kd_training.data.generate import generate

OVERRIDES = {"optimizer": "AdamW", "lr0": 0.0003, "lrf": 0.05, "cos_lr": True,
             "warmup_epochs": 0.2, "nbs": 8, "mosaic": 0.7, "close_mosaic": 0,
             "flipud": 0.3}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Duration of each training; ``overrides`` of the student as in `Config`."""

    procedural: int = 250
    thermal_epochs: int = 8
    thermal_imgsz: int = 320
    epochs: int = 6
    imgsz: int = 320
    batch: int = 8
    seed: int = 0
    balance: float = 0.5
    overrides: dict[str, Any] = field(default_factory=OVERRIDES.copy)


# Images of rgb-unlabelled by the beginning of their names. One of caliterra shows a car: left out.
# All of lewis is left out, so that no false alarm in it can have been trained away.
RGB_SOURCES = {
    "bogota-niza": ("bogota-niza",),
    "chia-slanted": ("chia-aqua_0294", "chia-aqua_03"),
    "chia-aqua": ("chia-aqua_00", "chia-aqua_01", "chia-aqua_0211"),
    "caliterra": ("caliterra",),
    "elsewhere": ("boruszyn", "freetown", "agung"),
}
NOT_EMPTY = ("caliterra_9412",)
# Images without any object of the model's classes.
EMPTY = {
    "lewis (not trained on)": ("lewis_4196", "lewis_4260", "lewis_4344", "lewis_4348"),
    "caliterra (trained on)": ("caliterra_9354", "caliterra_9401", "caliterra_9407",
                               "caliterra_9430"),
}  # fmt: skip
UNLABELLED = Path("data/rgb-unlabelled/images")
VIDEO = Path("replay/minsk_DJI_0005_seq.mp4")
# Sets on which models with different class lists are compared by kind of object. unicamp-people is
# a development set: its training flight helps to choose alpha, and its figures chose thresholds of
# the recipe.
TEST_SETS = ("hit-uav", "aerial-cars", "unicamp-people")
KINDS = {
    **dict.fromkeys(("car", "van", "truck", "bus", "minibus", "other_vehicle"), "vehicle"),
    **dict.fromkeys(("person", "pedestrian", "people"), "person"),
    **dict.fromkeys(("two-wheeler", "bicycle", "motorcycle", "motor", "tricycle", "cyclist"),
                    "two-wheeler"),
}  # fmt: skip
# Images on which alpha and the threshold are chosen: of HIT-UAV's training flights those between
# the ones trained on, of aerial-cars the ones trained on (there are no others), of unicamp-people
# the training flight, which is not trained on. The first two are of flights that are trained on:
# they rank settings, and their scores are too high. No flight that judges is among them.
SELECTION_IMAGES = 150


def prepare(shared: Path, work: Path, synthetic: int, seed: int) -> None:
    """Write what default_model.yaml names below $work: lists, images of a video, synthetic images.

    ``shared``: folder with data/ and replay/. What ``work`` holds already is kept. ``synthetic``:
    number of synthetic training images.
    """
    generate(work / "procedural", train=synthetic, val=60, imgsz=640, seed=seed)
    images = image_paths(shared / UNLABELLED)
    for name, beginnings in RGB_SOURCES.items():
        own = [p for p in images if p.name.startswith(beginnings) and p.stem not in NOT_EMPTY]
        write_list(work / f"{name}.txt", own)
    _extract_frames(shared / VIDEO, work / "replay")


def _extract_frames(video: Path, folder: Path) -> None:
    if folder.is_dir():
        return
    capture = open_video(video)
    with atomic_folder(folder) as temporary:
        for number, (_, frame) in enumerate(read_video(capture, str(video))):
            write_image(temporary / f"{number:04d}.png", frame)


def selection_images(folder: Path, trained: set[Path]) -> list[Path]:
    """Return images of a training split on which something is chosen: see `SELECTION_IMAGES`."""
    images = image_paths(folder)
    between = [path for path in images if path not in trained] or images
    return between[:: max(1, len(between) // SELECTION_IMAGES)]


def write_test_set(
    shared: Path, name: str, folder: Path, trained: set[Path] | None = None
) -> Path:
    """Write a validation split with its classes merged to person, two-wheeler and vehicle.

    An old ``folder`` is replaced. If ``trained`` images are given, `selection_images` are taken
    instead of the validation split. Returns the data.yaml.
    """
    data = load_data(shared / "data" / name / "data.yaml")
    kinds = tuple(dict.fromkeys(KINDS[n] for n in data.names))
    empty_folder(folder)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    paths = image_paths(data.val) if trained is None else selection_images(data.train, trained)
    for path in paths:
        (folder / "images" / path.name).symlink_to(path)
        sample = read_sample(path, len(data.names))
        if sample is None:
            raise DataError(f"{path}: expected a readable image with valid labels")
        height, width = sample.image.shape[:2]
        ids = (kinds.index(KINDS[data.names[i]]) for i in sample.class_ids)
        lines = label_lines(ids, centre_and_size(sample.xyxy) / ([width, height] * 2))
        write_text(folder / "labels" / f"{path.stem}.txt", lines)
    content = {"train": "images", "val": "images", "names": dict(enumerate(kinds))}
    write_text(folder / "data.yaml", yaml.safe_dump(content, sort_keys=False))
    return folder / "data.yaml"
