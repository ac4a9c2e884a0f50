# SPDX-License-Identifier: AGPL-3.0-or-later
"""Data sets in Ultralytics' layout: data.yaml, images and label files, checked when read.

They may come from others: sizes are limited, and nothing is ever written into them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from drone_kd.files import write_text
from drone_kd.media.image_files import IMAGE_SUFFIXES, SourceError, read_image
from drone_kd.parsing import MAX_BYTES, ParseError, read_limited, read_yaml
from drone_kd.text import one_line
from drone_kd_training.data.names import DataError, class_list, usable_path

LOGGER = logging.getLogger(__name__)

# Of one label file: some 100,000 boxes.
MAX_LABEL_BYTES = 4_000_000
# Of an image. Assignment takes memory in proportion to them: 30,000 need 4 GB at 320 px. Aerial
# data sets have up to 1,000.
MAX_BOXES = 3_000
# Of a list of images; the largest public data sets have as many.
MAX_IMAGES = 2_000_000


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

    Relative paths in it start at its key ``path``, which is relative to the file's own folder. Its
    ``download`` is ignored. Raises DataError if the file is missing or no YAML, a key is missing,
    a class name cannot be used, or a path does not exist.
    """
    file = Path(path)
    if not os.path.isfile(file):  # noqa: PTH113  Path.is_file() raises for names that are too long
        raise DataError(
            f"no data.yaml at {one_line(file)}: give the yaml file of an Ultralytics-format data "
            "set"
        )
    try:
        content = read_yaml(file)
    except ParseError as error:
        raise DataError(str(error)) from None
    shown = one_line(file)
    if not isinstance(content, dict):
        raise DataError(
            f"{shown} must hold keys (train, val, names), found {type(content).__name__}"
        )
    missing = [key for key in ("train", "val", "names") if not content.get(key)]
    if missing:
        raise DataError(f"{shown} lacks {', '.join(missing)}: train, val and names are required")
    root = _resolved(shown, "path", file.parent, content.get("path") or ".")
    keys = [key for key in ("train", "val", "test") if content.get(key)]
    splits = {key: _resolved(shown, key, root, content[key]) for key in keys}
    return DataSet(file.resolve(), _class_names(shown, content["names"]), **splits)


def _class_names(file: str, names: object) -> tuple[str, ...]:
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise DataError(
                f"{file}: names must be numbered 0 to {len(names) - 1}, found "
                f"{one_line(list(names))}"
            )
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(n, (str, int, float)) for n in names):
        raise DataError(f"{file}: names must be a list of class names, found {one_line(names)}")
    return class_list(names, file)


def _resolved(file: str, key: str, root: Path, value: object) -> Path:
    if not isinstance(value, str):
        raise DataError(
            f"{file}: {key} must be one folder or list file, found {type(value).__name__}"
        )
    try:
        path = (root / usable_path(value, f"{file}: {key}")).resolve()
        found = path.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise DataError(f"{file}: {key} is {one_line(value)}: {one_line(error)}") from None
    if not found:
        raise DataError(
            f"{file}: {key} is {one_line(value)}, but {one_line(path)} does not exist: correct "
            + ("'path'" if key == "path" else f"'path' or '{key}'")
        )
    return path


def image_paths(split: Path) -> list[Path]:
    """Return all images of a split: a folder, searched recursively, or a file of paths.

    A file holds one path per line, relative to its own folder. The names of links are kept. Raises
    DataError if there is no image, the list has more than `MAX_IMAGES`, or a name cannot stand in
    a list.
    """
    if split.is_dir():
        found = sorted(p for p in split.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        for path in found:
            usable_path(path, split)
    else:
        lines = [line.strip() for line in read_text(split).splitlines() if line.strip()]
        if len(lines) > MAX_IMAGES:
            raise DataError(
                f"{one_line(split)}: expected at most {MAX_IMAGES} images, got {len(lines)}"
            )
        files = (split.parent / usable_path(line, split) for line in lines)
        found = [Path(os.path.abspath(file)) for file in files]  # noqa: PTH100  resolve() follows links, and labels go by the link's name
    if not found:
        raise DataError(
            f"no image in {one_line(split)}: expected files ending in {', '.join(IMAGE_SUFFIXES)}"
        )
    return found


def write_list(path: Path, images: Iterable[Path]) -> None:
    """Write a list file of images, as `image_paths` reads it."""
    write_text(path, "".join(f"{image}\n" for image in images))


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
    try:
        pixels = read_image(image)
        rows = read_labels(label_path(image), classes)
    except SourceError as error:
        LOGGER.warning("ignored %s", one_line(error))
        return None
    except DataError as error:
        LOGGER.warning("ignored %s: %s", one_line(image), error)
        return None
    height, width = pixels.shape[:2]
    centre, size = rows[:, 1:3], rows[:, 3:5]
    xyxy = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    xyxy *= np.array([width, height, width, height])
    return Sample(image, pixels, xyxy.astype(np.float32), rows[:, 0].astype(np.int64))


def read_labels(path: Path, classes: int) -> np.ndarray:
    """Return the rows of a label file, float64 (n, 5): class, centre and size in [0, 1].

    No file: no rows. Raises DataError if the file cannot be read, is larger than
    `MAX_LABEL_BYTES` or has more than `MAX_BOXES` rows, a row is not five numbers, a class is
    outside 0..classes-1 or a coordinate outside [0, 1].
    """
    if not path.is_file():
        return np.zeros((0, 5))
    text = [line.split() for line in read_text(path, MAX_LABEL_BYTES).splitlines() if line.strip()]
    check_number_of_boxes(len(text), path)
    shown = one_line(path)
    try:
        rows = np.array(text, dtype=np.float64).reshape(len(text), 5)
    except ValueError:
        raise DataError(f"every line of {shown} must be 'class cx cy w h'") from None
    if not np.isin(rows[:, 0], np.arange(classes)).all():
        raise DataError(f"{shown} has a class outside 0..{classes - 1}")
    if not ((rows[:, 1:] >= 0) & (rows[:, 1:] <= 1)).all():
        raise DataError(f"{shown} has a coordinate outside [0, 1]")
    return rows


def check_number_of_boxes(number: int, path: str | Path) -> None:
    """Raise DataError if the label file of an image has more than `MAX_BOXES` rows."""
    if number > MAX_BOXES:
        raise DataError(
            f"{one_line(path)}: expected at most {MAX_BOXES} boxes in an image, got {number}"
        )


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """Return a UTF-8 text of at most ``limit`` bytes; DataError if the file is no such text."""
    try:
        return read_limited(path, limit).decode("utf-8-sig")  # Windows may write a mark first
    except ParseError as error:
        raise DataError(str(error)) from None
    except UnicodeDecodeError:
        raise DataError(f"{one_line(path)}: expected text in UTF-8; save it as UTF-8") from None


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
