# SPDX-License-Identifier: AGPL-3.0-or-later
"""Cache of a teacher's predictions, by image content.

The folder is named by the teacher and a hash of its weights, input size and tiles; a file in it by
a hash of the image. Predictions of another teacher, input size or image are never mistaken for
these, and an interrupted run continues.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache, cached_property
from pathlib import Path

import cv2
import numpy as np
from ultralytics.utils import LOGGER

from drone_kd.core.detections import Detections
from drone_kd.detector import Detector
from drone_kd.files import atomic_file, file_sha256, write_text
from drone_kd.metrics import MAX_DETECTIONS
from drone_kd.paths import parameter_defaults
from drone_kd.progress import track
from drone_kd_training.data.dataset import DataError
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

# Incremented when the same settings give other predictions.
_VERSION = 1


class PredictionCache:
    """The predictions of one teacher, by image."""

    def __init__(self, teacher: Teacher, folder: Path, names: tuple[str, ...]) -> None:
        """Open the cache of a teacher in ``folder``, which is that of all teachers.

        A teacher of given predictions has none; ``names`` are the student's classes.
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
        others = [p for p in folder.glob(f"{teacher.name}-*") if p != self.folder]
        if others and not self.folder.exists():
            LOGGER.info(
                f"{teacher.name}: the predictions in {others[0]} are of other weights, "
                "another input size or other tiles: computed again"
            )
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
            image = cv2.imread(str(path))
            if image is None:
                raise DataError(f"{path} is not readable as an image")
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

        Float32 (n, 6): x1, y1, x2, y2 in [0, 1] of the image, score, the teacher's class.
        """
        if self._given is None:
            return np.load(self._file(image))
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


# Every image is hashed more than once.
file_hash = cache(file_sha256)
