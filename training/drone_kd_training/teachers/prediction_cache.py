# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a teacher finds in each picture, computed once and kept.

An answer's file lies in a folder named by teacher and a hash of its weights, input size and tiles,
and is itself named by a hash of the picture: nothing of another teacher, size or picture is ever
taken for it, and an interrupted run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from ultralytics.utils import LOGGER

from drone_kd.detector import Detector
from drone_kd.files import file_sha256
from drone_kd.metrics import MAX_DETECTIONS
from drone_kd.paths import parameter_defaults
from drone_kd.progress import track
from drone_kd_training.data.dataset import DataError, write_text
from drone_kd_training.evaluation.evaluate import IOU
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.models.torch_backend import TorchBackend
from drone_kd_training.teachers.plan import Teacher, predicted
from drone_kd_training.teachers.teachers import LOWEST_SCORE, open_teacher

# Counts up when the same teacher would be asked in another way.
_VERSION = 1


class Answers:
    """The answers of one teacher, by picture."""

    def __init__(self, teacher: Teacher, folder: Path, names: tuple[str, ...]) -> None:
        """``folder``: of all teachers; ``names``: the student's classes."""
        self.teacher = teacher
        self._given = (
            open_teacher(str(teacher.weights), names) if predicted(teacher.weights) else None
        )
        self._detector: Detector | None = None
        if self._given is None:
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
                    f"{teacher.name}: the answers in {others[0]} are of other weights, another "
                    "input size or other tiles: computed again"
                )
            write_text(self.folder / "teacher.json", json.dumps(made_by, indent=1))

    def compute(self, pictures: Iterable[Path]) -> None:
        """Ask the teacher about the pictures for which there is no answer yet."""
        if self._given is not None:
            return
        missing = [p for p in dict.fromkeys(pictures) if not self._file(p).is_file()]
        for path in track(missing, f"Predict with {self.teacher.name}", "image"):
            image = cv2.imread(str(path))
            if image is None:
                raise DataError(f"{path} is not readable as a picture")
            found = self._ask(image)
            height, width = image.shape[:2]
            size = np.array([width, height] * 2, np.float32)
            table = np.concatenate(
                [found.xyxy / size, found.scores[:, None], found.class_ids[:, None]], axis=1
            )
            target = self._file(path)
            temporary = target.with_name(f".{target.name}.{os.getpid()}.npy")
            np.save(temporary, table.astype(np.float32))
            os.replace(temporary, target)

    def of(self, picture: Path, shape: tuple[int, int]) -> np.ndarray:
        """Float32 (n, 6): x1, y1, x2, y2 in [0, 1] of the picture, score, the teacher's class.

        ``shape``: (height, width) of the picture.
        """
        if self._given is None:
            return np.load(self._file(picture))
        boxes, scores = self._given.found.get(
            picture.stem, (np.zeros((0, 4)), np.zeros((0, len(self._given.names))))
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

    def _file(self, picture: Path) -> Path:
        return self.folder / f"{file_hash(picture)[:24]}.npy"

    def _ask(self, image: np.ndarray):
        if self._detector is None:
            model, _ = load_model(str(self.teacher.weights))
            self._detector = Detector(
                TorchBackend(model, self.teacher.imgsz),
                LOWEST_SCORE,
                IOU,
                MAX_DETECTIONS,
                tiling=self.teacher.tiles,
                tile_overlap=parameter_defaults("detector.yaml")["tile_overlap"],
            )
        return self._detector(image)


# Every picture is asked for more than once.
file_hash = cache(file_sha256)
