# SPDX-License-Identifier: AGPL-3.0-or-later
"""Write a teacher's predictions for a data set, once, for many distillation runs.

drone-kd predict teacher.pt --data data.yaml --imgsz 1280 --output predictions
drone-kd distill --teacher predictions ...
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from drone_kd.core.detections import Detections
from drone_kd.detector import Detector
from drone_kd.files import atomic_folder
from drone_kd.metrics import MAX_DETECTIONS
from drone_kd.progress import track
from drone_kd.text import one_line
from drone_kd_training.data.dataset import (
    centre_and_size,
    image_paths,
    label_lines,
    load_data,
    read_sample,
)
from drone_kd_training.data.names import DataError
from drone_kd_training.evaluation.evaluate import IOU
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.models.torch_backend import TorchBackend
from drone_kd_training.teachers.teachers import CLASSES_FILE, LOWEST_SCORE


def prediction_lines(found: Detections, width: int, height: int) -> str:
    """Return predictions for an image of this size in pixels as label lines with confidence."""
    boxes = centre_and_size(found.xyxy) / ([width, height] * 2)
    return label_lines(found.class_ids, boxes, found.scores)


def check_stems(images: Iterable[Path]) -> None:
    """Raise DataError if the predictions for an image would replace the list of classes."""
    reserved = Path(CLASSES_FILE).stem
    for path in images:
        if path.stem.lower() == reserved:
            raise DataError(
                f"{one_line(path)}: the name {reserved} is taken by the list of classes; rename "
                "the image"
            )


def predict(
    model: str, data: str | Path, output: Path, split: str = "train", imgsz: int | None = None
) -> int:
    """Run a teacher on a split; write one ``.txt`` per image, as `teachers.teachers` reads it.

    The classes are the teacher's, listed in ``classes.txt``. ``output`` appears when it is
    complete. The result is the number of images.

    Args:
        model: a checkpoint with a Detect head.
        split: train, val or test.
        imgsz: square input in pixels, which may be larger than the student's; None: as trained.

    Raises:
        DataError, UnusableModelError, FileExistsError: the input cannot be used.
    """
    dataset = load_data(data)
    folder = getattr(dataset, split, None) if split in ("train", "val", "test") else None
    if folder is None:
        shown = one_line(repr(split), 60)
        raise DataError(f"{one_line(data)} has no split {shown}: use one that it has")
    if output.exists():
        shown = one_line(output)
        raise FileExistsError(f"{shown} exists already: choose another folder, or delete it")
    paths = image_paths(folder)
    check_stems(paths)
    backend = TorchBackend(load_model(model)[0], imgsz)
    detector = Detector(backend, LOWEST_SCORE, IOU, MAX_DETECTIONS)
    images = 0
    with atomic_folder(output) as partial:
        names = "".join(f"{name}\n" for name in backend.spec.classes)
        (partial / CLASSES_FILE).write_text(names, encoding="utf-8")
        for path in track(paths, f"Predict {split}", "image"):
            sample = read_sample(path, len(dataset.names))
            if sample is None:
                continue
            height, width = sample.image.shape[:2]
            lines = prediction_lines(detector(sample.image), width, height)
            (partial / f"{path.stem}.txt").write_text(lines, encoding="utf-8")
            images += 1
    return images
