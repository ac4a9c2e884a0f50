# SPDX-License-Identifier: AGPL-3.0-or-later
"""Write down what a teacher finds in a data set's frames, once, for many runs to learn from.

python -m training predict teacher.pt --data data.yaml --imgsz 1280 --output answers
python -m training distill --teacher answers ...
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from drone_kd.core.detections import Detections
from drone_kd.detector import Detector
from drone_kd.metrics import MAX_DETECTIONS
from drone_kd.progress import track
from drone_kd_training.data.dataset import (
    DataError,
    centre_and_size,
    image_paths,
    label_lines,
    load_data,
    read_sample,
)
from drone_kd_training.evaluation.evaluate import IOU
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.models.torch_backend import TorchBackend
from drone_kd_training.teachers.teachers import CLASSES_FILE, LOWEST_SCORE


def answer_lines(found: Detections, width: int, height: int) -> str:
    """Answers of a picture of this size in pixels as lines 'class cx cy w h confidence'."""
    boxes = centre_and_size(found.xyxy) / ([width, height] * 2)
    return label_lines(found.class_ids, boxes, found.scores)


def predict(
    model: str, data: str | Path, output: Path, split: str = "train", imgsz: int | None = None
) -> int:
    """Run a teacher over a split; write a ``.txt`` per frame as `teachers.teachers` reads it.

    Args:
        model: a checkpoint with a Detect head.
        data: data.yaml in Ultralytics' format, for its frames: the classes are the teacher's,
            named in ``classes.txt``.
        output: folder to make; nothing is left there when this is interrupted.
        split: train, val or test.
        imgsz: square input in pixels, which may be larger than the student's (default: as
            trained).

    Returns:
        The number of frames.

    Raises:
        DataError, UnusableModelError, FileExistsError: input that cannot work.
    """
    dataset = load_data(data)
    folder = getattr(dataset, split, None) if split in ("train", "val", "test") else None
    if folder is None:
        raise DataError(f"{data} has no split {split!r}: use one that it has")
    if output.exists():
        raise FileExistsError(f"{output} exists already: choose another folder, or delete it")
    backend = TorchBackend(load_model(model)[0], imgsz)
    detector = Detector(backend, LOWEST_SCORE, IOU, MAX_DETECTIONS)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    frames = 0
    try:
        names = "".join(f"{name}\n" for name in backend.spec.classes)
        (temporary / CLASSES_FILE).write_text(names, encoding="utf-8")
        paths = image_paths(folder)
        for path in track(paths, f"Predict {split}", "image"):
            sample = read_sample(path, len(dataset.names))
            if sample is None:
                continue
            height, width = sample.image.shape[:2]
            lines = answer_lines(detector(sample.image), width, height)
            target = temporary / f"{path.stem}.txt"
            target.write_text(lines, encoding="utf-8")
            frames += 1
        os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return frames
