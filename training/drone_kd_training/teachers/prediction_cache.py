# SPDX-License-Identifier: AGPL-3.0-or-later
"""Cache of a teacher's predictions, by image content.

The folder is named by the teacher and a hash of its weights, input size and tiles; a file in it by
a hash of the image. Predictions of another teacher, input size or image are never mistaken for
these, and an interrupted run continues. A file that is no such table is refused.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
from collections.abc import Iterable
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from ultralytics.utils import LOGGER

from drone_kd.core.detections import Detections
from drone_kd.detector import Detector
from drone_kd.files import atomic_file, file_sha256, write_text
from drone_kd.media.image_files import SourceError, read_image
from drone_kd.metrics import MAX_DETECTIONS
from drone_kd.parsing import ParseError, read_limited
from drone_kd.paths import parameter_defaults
from drone_kd.progress import track
from drone_kd.text import one_line
from drone_kd_training.data.dataset import MAX_BOXES
from drone_kd_training.data.folders import real_folder
from drone_kd_training.data.names import DataError
from drone_kd_training.evaluation.evaluate import IOU
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.models.torch_backend import TorchBackend
from drone_kd_training.teachers.teachers import (
    LOWEST_SCORE,
    Predictions,
    holds_predictions,
    read_predictions,
)
from drone_kd_training.teachers.teaching_plan import Teacher

# Of the predictions for one image: rows of six float32, after a header.
MAX_TABLE_BYTES = 1_000_000
_MAGIC, _MAX_HEADER = b"\x93NUMPY", 1_000
# Incremented when the same settings give other predictions.
_VERSION = 1


class PredictionCache:
    """The predictions of one teacher, by image."""

    def __init__(self, teacher: Teacher, folder: Path, names: tuple[str, ...]) -> None:
        """Open the cache of a teacher in ``folder``, which is that of all teachers.

        A teacher of given predictions has none; ``names`` are the student's classes. Raises
        DataError if its folder is a link.
        """
        self.teacher = teacher
        self._given: Predictions | None = None
        if holds_predictions(teacher.weights):
            self._given = read_predictions(str(teacher.weights), names)
            return
        made_by = {
            "version": _VERSION,
            "weights": file_hash(teacher.weights),
            "imgsz": teacher.imgsz,
            "tiles": teacher.tiles,
        }
        key = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:12]
        self.folder = folder / f"{teacher.name}-{key}"
        pattern = f"{glob.escape(teacher.name)}-*"
        others = [p for p in folder.glob(pattern) if p != self.folder]
        if others and not self.folder.exists():
            LOGGER.info(
                f"{teacher.name}: the predictions in {one_line(others[0])} are of other weights, "
                "another input size or other tiles: computed again"
            )
        real_folder(self.folder)
        write_text(self.folder / "teacher.json", json.dumps(made_by, indent=1))

    def compute(self, images: Iterable[Path]) -> None:
        """Run the teacher on the images that are not in the cache.

        Raises:
            DataError: an image cannot be read.
        """
        if self._given is not None:
            return
        missing = [p for p in dict.fromkeys(images) if not self._file(p).is_file()]
        for path in track(missing, f"Predict with {self.teacher.name}", "image"):
            try:
                image = read_image(path)
            except SourceError as error:
                raise DataError(one_line(error)) from None
            found = self._predict(image)
            height, width = image.shape[:2]
            size = np.array([width, height] * 2, np.float32)
            table = np.concatenate(
                [found.xyxy / size, found.scores[:, None], found.class_ids[:, None]], axis=1
            )
            with atomic_file(self._file(path)) as temporary, temporary.open("wb") as file:
                np.save(file, table.astype(np.float32))

    def of(self, image: Path, shape: tuple[int, int]) -> np.ndarray:
        """Return the predictions for an image of ``shape`` (height, width) in pixels.

        Float32 (n, 6): x1, y1, x2, y2 in [0, 1] of the image, score, the teacher's class. Raises
        DataError if the cache's file is no such table.
        """
        if self._given is None:
            return read_table(self._file(image), len(self.teacher.names))
        boxes, scores = self._given.found.get(
            image.stem, (np.zeros((0, 4)), np.zeros((0, len(self._given.names))))
        )
        height, width = shape
        if self._given.pixels:
            boxes = boxes / np.array([width, height] * 2)
        corners = np.concatenate(
            [boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1
        )
        best = scores.argmax(1) if len(scores) else np.zeros(0)
        return np.concatenate(
            [corners, scores.max(1, initial=0)[:, None], best[:, None]], 1
        ).astype(np.float32)

    def _file(self, image: Path) -> Path:
        return self.folder / f"{file_hash(image)[:24]}.npy"

    @cached_property
    def _detector(self) -> Detector:
        backend = TorchBackend(load_model(str(self.teacher.weights))[0], self.teacher.imgsz)
        overlap = parameter_defaults("detector.yaml")["tile_overlap"]
        tiles = {"tiling": self.teacher.tiles, "tile_overlap": overlap}
        return Detector(backend, LOWEST_SCORE, IOU, MAX_DETECTIONS, **tiles)

    def _predict(self, image: np.ndarray) -> Detections:
        return self._detector(image)


def read_table(path: Path, classes: int) -> np.ndarray:
    """Return a table of `PredictionCache.of` from its .npy file; DataError if it is none."""
    try:
        content = read_limited(path, MAX_TABLE_BYTES)
        if not content.startswith(_MAGIC):  # NumPy would read archives, too
            raise ValueError("expected the format of NumPy")
        table = np.load(io.BytesIO(content), allow_pickle=False, max_header_size=_MAX_HEADER)
    except ParseError as error:
        raise DataError(f"{error}; delete it") from None
    except Exception:  # the header is parsed as Python: as many types as that has
        table = None
    if (
        not isinstance(table, np.ndarray)
        or (table.dtype, table.shape[1:]) != (np.float32, (6,))
        or len(table) > MAX_BOXES
        or not (np.abs(table) <= classes).all()
        or not (table[:, 4:] >= 0).all()
        or not (table[:, 4] <= 1).all()
        or not np.isin(table[:, 5], np.arange(classes)).all()
    ):
        raise DataError(
            f"{one_line(path)}: expected predictions as float32 (n, 6) with scores in [0, 1] and "
            f"classes 0 to {classes - 1}; delete it"
        )
    return table


# Every image is hashed more than once.
file_hash = cache(file_sha256)
