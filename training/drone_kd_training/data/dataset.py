# SPDX-License-Identifier: AGPL-3.0-or-later
"""Data sets in Ultralytics' layout: read data.yaml once, check it, and resolve every path."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml

LOGGER = logging.getLogger(__name__)

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


class DataError(ValueError):
    """A data set that cannot be used; the message says what was expected, what came and what to
    do.
    """


@dataclass(frozen=True)
class DataSet:
    """A checked data set: class names by index and one image folder (or list file) per split."""

    yaml_path: Path
    names: tuple[str, ...]
    train: Path
    val: Path
    test: Path | None = None

    def write_resolved(self, path: Path) -> Path:
        """Write the data set as a yaml with absolute paths, which Ultralytics reads the same
        from any folder.
        """
        content = {
            "train": str(self.train),
            "val": str(self.val),
            "names": dict(enumerate(self.names)),
        }
        if self.test is not None:
            content["test"] = str(self.test)
        write_text(path, yaml.safe_dump(content, sort_keys=False))
        return path


@dataclass(frozen=True)
class Sample:
    """One labelled picture: BGR uint8 (h, w, 3), boxes float32 (N, 4) xyxy in its pixels,
    classes (N,).
    """

    path: Path
    image: np.ndarray
    xyxy: np.ndarray
    class_ids: np.ndarray


def load_data(path: str | os.PathLike) -> DataSet:
    """Read a data.yaml; relative paths in it are taken from ``path`` and that from the yaml's own
    folder.

    Raises:
        DataError: file missing or no yaml, a key missing, or a path in it that does not exist.
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
    names = content["names"]
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise DataError(
                f"{file}: names must be numbered 0 to {len(names) - 1}, found {list(names)}"
            )
        names = [names[i] for i in range(len(names))]
    names = tuple(str(name) for name in names)
    if len(set(names)) != len(names):
        raise DataError(f"{file}: class names must be unique, found {list(names)}")
    root = (file.parent / (content.get("path") or ".")).resolve()
    splits = {
        key: _split_path(file, root, key, content.get(key)) for key in ("train", "val", "test")
    }
    return DataSet(yaml_path=file.resolve(), names=names, **splits)


def _split_path(file: Path, root: Path, key: str, value: object) -> Path | None:
    if not value:
        return None
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
    """All pictures of a split: a folder (searched recursively) or a text file with one path a
    line.
    """
    if split.is_dir():
        found = sorted(p for p in split.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    else:
        lines = (line.strip() for line in split.read_text(encoding="utf-8").splitlines())
        # Not resolved: labels and answers go by the name of a link, not of what it leads to.
        found = [Path(os.path.abspath(split.parent / line)) for line in lines if line]
    if not found:
        raise DataError(
            f"no picture in {split}: expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return found


def label_path(image: Path) -> Path:
    """The YOLO label file of a picture: the last folder named ``images`` becomes ``labels``,
    the suffix .txt.
    """
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def read_sample(image: Path, classes: int) -> Sample | None:
    """Read a picture with its labels; None (and one warning line) for what training ignores, too.

    A picture that does not decode, a label row that is not five numbers, a class outside
    0..classes-1 or a coordinate outside [0, 1] makes the picture unusable: half of its labels
    would turn the rest into errors. A missing label file means that the picture has no object.
    """
    pixels = cv2.imread(str(image), cv2.IMREAD_COLOR)
    if pixels is None:
        LOGGER.warning("ignored %s: not readable as a picture", image)
        return None
    height, width = pixels.shape[:2]
    labels = label_path(image)
    rows = np.zeros((0, 5), dtype=np.float64)
    if labels.is_file():
        try:
            text = [
                line.split()
                for line in labels.read_text(encoding="utf-8").splitlines()
                if line.strip()
            ]
            rows = np.array(text, dtype=np.float64).reshape(len(text), 5)
        except ValueError:
            LOGGER.warning("ignored %s: every line of %s must be 'class cx cy w h'", image, labels)
            return None
    ids = rows[:, 0].astype(np.int64)
    if len(rows) and ((ids < 0).any() or (ids >= classes).any() or (ids != rows[:, 0]).any()):
        LOGGER.warning("ignored %s: %s has a class outside 0..%d", image, labels, classes - 1)
        return None
    if len(rows) and (rows[:, 1:].min() < 0 or rows[:, 1:].max() > 1):
        LOGGER.warning("ignored %s: %s has a coordinate outside [0, 1]", image, labels)
        return None
    centre, size = rows[:, 1:3], rows[:, 3:5]
    xyxy = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    xyxy *= np.array([width, height, width, height])
    return Sample(image, pixels, xyxy.astype(np.float32), ids)


def label_lines(
    class_ids: Iterable[int], boxes: np.ndarray, scores: Iterable[float] | None = None
) -> str:
    """Lines 'class cx cy w h', with ``scores`` 'class cx cy w h confidence'.

    ``boxes``: (N, 4) centre and size in [0, 1] of the picture.
    """
    table = np.asarray(boxes)
    if scores is not None:
        table = np.column_stack([table, np.asarray(scores)])
    return "".join(
        f"{int(class_id)} {' '.join(f'{value:.6f}' for value in row)}\n"
        for class_id, row in zip(class_ids, table.tolist(), strict=True)
    )


def centre_and_size(xyxy: np.ndarray) -> np.ndarray:
    """Corners (N, 4) as centre and size (N, 4)."""
    return np.hstack([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]])


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees either the old or the whole new content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
