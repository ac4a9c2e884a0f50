# SPDX-License-Identifier: AGPL-3.0-or-later
"""One image that shows labels and several models on the same frames, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from drone_kd.detector import Detector
from drone_kd.metrics import MAX_DETECTIONS
from drone_kd.visualization import contact_sheet, draw_text
from drone_kd_training.data.dataset import DataSet, Sample, image_paths, load_data, read_sample
from drone_kd_training.data.folders import write_image
from drone_kd_training.evaluation.evaluate import IOU
from drone_kd_training.html_report import CONFIDENCE, annotate, draw_labels, found_objects
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.models.torch_backend import TorchBackend

ROWS, CELL_PX = 4, (480, 480)
CROWD = 20


def compare_models(checkpoints: Mapping[str, Path], data: Path, imgsz: int, output: Path) -> None:
    """Write an image with a column for the labels and one per model, a row per frame.

    White ring: a labelled object that the model misses at confidence 0.25 and IoU 0.5. The frames
    are of the validation split: in each fourth of it the one with most classes, then most objects.
    Boxes and rings of more than 20 objects would hide the frame: such frames come last.

    Args:
        checkpoints: name of a model -> its .pt file.
        data: a data.yaml.
        imgsz: side of the models' square input in pixels.
        output: .jpg file.

    Raises:
        DataError: the data cannot be read.
        UnusableModelError: a checkpoint cannot be loaded.
        OSError: the image cannot be written.
    """
    dataset = load_data(data)
    samples = _choose(dataset)
    names = dataset.names
    columns = {"labels": [draw_labels(s, names, names, CELL_PX) for s in samples]}
    for name, path in checkpoints.items():
        backend = TorchBackend(load_model(str(path))[0], imgsz)
        detector = Detector(backend, CONFIDENCE, IOU, MAX_DETECTIONS)
        columns[name] = [_draw_found(sample, detector, names) for sample in samples]
    for name, images in columns.items():
        draw_text(images[0], name)
    cells = [image for row in zip(*columns.values(), strict=True) for image in row]
    write_image(output, contact_sheet(cells, len(columns), len(columns) * CELL_PX[0]))


def _choose(dataset: DataSet) -> list[Sample]:
    paths = image_paths(dataset.val)
    chosen = []
    for part in np.array_split(np.arange(len(paths)), min(ROWS, len(paths))):
        found = (read_sample(paths[index], len(dataset.names)) for index in part)
        samples = [sample for sample in found if sample is not None]
        if samples:
            chosen.append(max(samples, key=_shows))
    return chosen


def _shows(sample: Sample) -> tuple[bool, int, int]:
    count = len(sample.class_ids)
    return count <= CROWD, len(set(sample.class_ids.tolist())), count


def _draw_found(sample: Sample, detector: Detector, names: tuple[str, ...]) -> np.ndarray:
    found, classes = detector(sample.image), detector.backend.spec.classes
    missed = ~found_objects(sample, found, classes, names)
    return annotate(sample, found, classes, missed, widths=CELL_PX)
