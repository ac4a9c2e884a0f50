# SPDX-License-Identifier: AGPL-3.0-or-later
"""Data sets in Ultralytics' layout: data.yaml, images and label files, checked when read."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml

from drone_kd.files import write_text

LOGGER = logging.getLogger(__name__)

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


class DataError(ValueError):
    """A data set cannot be used; the message says what was expected and what to do."""


@dataclass(frozen=True)
class DataSet:
    """A checked data set: class names by index and one image folder (or list file) per split."""

    yaml_path: Path
    names: tuple[str, ...]
    train: Path
    val: Path
    test: Path | None = None

    def write_resolved(self, path: Path) -> Path:
        """Write a data.yaml with absolute paths, for use from any folder; return its path."""
        content: dict[str, object] = {"train": str(self.train), "val": str(self.val)}
        content["names"] = dict(enumerate(self.names))
        if self.test is not None:
            content["test"] = str(self.test)
        write_text(path, yaml.safe_dump(content, sort_keys=False))
        return path


@dataclass(frozen=True)
class Sample:
    """A labelled image, BGR uint8 (h, w, 3): boxes float32 (n, 4) in pixels, int64 (n,) ids."""

    path: Path
    image: np.ndarray
    xyxy: np.ndarray
    class_ids: np.ndarray


def load_data(path: str | os.PathLike) -> DataSet:
    """Read a data.yaml.

    Relative paths in it start at its key ``path``, which is relative to the file's own folder.
    Raises DataError if the file is missing or no YAML, a key is missing, or a path does not exist.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(
            f"no data.yaml at {file}: give the yaml file of an Ultralytics-format data set"
        )
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not readable as yaml: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise DataError(
            f"{file} must hold keys (train, val, names), found {type(content).__name__}"
        )
    missing = [key for key in ("train", "val", "names") if not content.get(key)]
    if missing:
        raise DataError(f"{file} lacks {', '.join(missing)}: train, val and names are required")
    root = (file.parent / (content.get("path") or ".")).resolve()
    keys = [key for key in ("train", "val", "test") if content.get(key)]
    splits = {key: _split_path(file, root, key, content[key]) for key in keys}
    return DataSet(file.resolve(), _class_names(file, content["names"]), **splits)


def _class_names(file: Path, names: list | dict) -> tuple[str, ...]:
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise DataError(
                f"{file}: names must be numbered 0 to {len(names) - 1}, found {list(names)}"
            )
        names = [names[i] for i in range(len(names))]
    found = tuple(str(name) for name in names)
    if len(set(found)) != len(found):
        raise DataError(f"{file}: class names must be unique, found {list(found)}")
    return found


def _split_path(file: Path, root: Path, key: str, value: object) -> Path:
    if not isinstance(value, str):
        raise DataError(
            f"{file}: {key} must be one folder or list file, found {type(value).__name__}"
        )
    path = (root / value).resolve()
    if not path.exists():
        raise DataError(
            f"{file}: {key} is {value}, but {path} does not exist: correct 'path' or '{key}'"
        )
    return path


def image_paths(split: Path) -> list[Path]:
    """Return all images of a split: a folder, searched recursively, or a file of paths.

    A file holds one path per line, relative to its own folder. The names of links are kept. Raises
    DataError if there is no image.
    """
    if split.is_dir():
        found = sorted(p for p in split.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    else:
        lines = split.read_text(encoding="utf-8").splitlines()
        files = (split.parent / line.strip() for line in lines if line.strip())
        found = [Path(os.path.abspath(file)) for file in files]  # noqa: PTH100  resolve() follows links, and labels go by the link's name
    if not found:
        raise DataError(
            f"no image in {split}: expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return found


def label_path(image: Path) -> Path:
    """Return an image's YOLO label file: the last folder ``images`` becomes ``labels``."""
    folders = list(image.parent.parts)
    if "images" in folders:
        folders[-1 - folders[::-1].index("images")] = "labels"
    return Path(*folders, image.name).with_suffix(".txt")


def read_sample(image: Path, classes: int) -> Sample | None:
    """Read an image with its labels; return None, with one warning, if training ignores it.

    An image is unusable if it does not decode, a label row is not five numbers, a class is
    outside 0..classes-1 or a coordinate is outside [0, 1]: half of its labels would turn the rest
    into errors. A missing label file means an image without objects.
    """
    pixels = cv2.imread(str(image), cv2.IMREAD_COLOR)
    if pixels is None:
        LOGGER.warning("ignored %s: not readable as an image", image)
        return None
    height, width = pixels.shape[:2]
    try:
        rows = _label_rows(label_path(image), classes)
    except ValueError as error:
        LOGGER.warning("ignored %s: %s", image, error)
        return None
    centre, size = rows[:, 1:3], rows[:, 3:5]
    xyxy = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    xyxy *= np.array([width, height, width, height])
    return Sample(image, pixels, xyxy.astype(np.float32), rows[:, 0].astype(np.int64))


def _label_rows(path: Path, classes: int) -> np.ndarray:
    """Return the rows of a label file, float64 (n, 5): class, centre, size in [0, 1]."""
    if not path.is_file():
        return np.zeros((0, 5))
    lines = path.read_text(encoding="utf-8").splitlines()
    text = [line.split() for line in lines if line.strip()]
    try:
        rows = np.array(text, dtype=np.float64).reshape(len(text), 5)
    except ValueError:
        raise ValueError(f"every line of {path} must be 'class cx cy w h'") from None
    if not np.isin(rows[:, 0], np.arange(classes)).all():
        raise ValueError(f"{path} has a class outside 0..{classes - 1}")
    if not ((rows[:, 1:] >= 0) & (rows[:, 1:] <= 1)).all():
        raise ValueError(f"{path} has a coordinate outside [0, 1]")
    return rows


def label_lines(
    class_ids: Iterable[int], boxes: np.ndarray, scores: Iterable[float] | None = None
) -> str:
    """Return label lines 'class cx cy w h', with ``scores`` 'class cx cy w h confidence'.

    ``boxes``: (n, 4) centre and size in [0, 1] of the image.
    """
    table = np.asarray(boxes)
    if scores is not None:
        table = np.column_stack([table, np.asarray(scores)])
    return "".join(
        f"{int(class_id)} {' '.join(f'{value:.6f}' for value in row)}\n"
        for class_id, row in zip(class_ids, table.tolist(), strict=True)
    )


def centre_and_size(xyxy: np.ndarray) -> np.ndarray:
    """Convert corners (n, 4) to centre and size (n, 4)."""
    return np.hstack([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]])
