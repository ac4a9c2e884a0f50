# SPDX-License-Identifier: AGPL-3.0-or-later
"""Measure a .pt or .onnx detector on a split: mAP50-95, mAP50, AP by object size and per class.

A .onnx runs through `drone_kd.detector.Detector`, and a .pt through the same letterbox, decode and
NMS with torch in the place of the runtime: what is measured is what flies. The figures are
pycocotools'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from drone_kd.backends import open_backend
from drone_kd.core.boxes import nms
from drone_kd.core.model_spec import ModelError
from drone_kd.detector import Detector
from drone_kd.metrics import (
    MAX_DETECTIONS,
    SIZES,
    annotation,
    mean_precision,
    precision,
)
from drone_kd.paths import parameter_defaults
from drone_kd.progress import track
from drone_kd_training.data.dataset import DataError, image_paths, load_data, read_sample
from drone_kd_training.models.checkpoints import UnusableModelError, load_model
from drone_kd_training.models.torch_backend import ImageSize, TorchBackend

# Evaluation keeps boxes down to almost nothing, so that the curve of precision over recall is
# complete; the IoU threshold is that of Ultralytics' validator, the field's yardstick.
CONFIDENCE, IOU = 0.001, 0.7


@dataclass(frozen=True)
class Answers:
    """What a model found in the frames of a split, as `drone_kd.metrics` takes it.

    ``known``: the classes that the model has; ``paths`` of the frames, whose ids are their index.
    """

    names: tuple[str, ...]
    known: list[int]
    paths: list[Path]
    images: list[dict]
    truth: list[dict]
    found: list[dict]
    ignored: int


def evaluate(
    model,
    data: str | Path,
    split: str = "val",
    imgsz: ImageSize | None = None,
    tiling: str = "off",
    only: tuple[str, ...] = (),
    classes: Mapping[str, str] | None = None,
) -> dict:
    """Evaluate a model on one split of a data set.

    Args:
        model: path of a .pt or .onnx file, a loaded Ultralytics detector, or a backend.
        data: data.yaml in Ultralytics' format; classes are matched to the model's by name.
        split: train, val or test.
        imgsz: input of a .pt: side of a square, or height and width (default: the square it was
            trained at); a .onnx has its own.
        tiling: see `drone_kd.detector.Detector`.
        only: the classes of the data to measure (default: all), where not all are labelled.
        classes: the model's name -> the data's, where they differ; of two boxes that become one
            class the better one counts.

    Returns:
        {"map50_95", "map50", "ap_tiny", "ap_small", "ap_medium", "ap_large", "per_class": {name:
        {...}}, "classes_not_in_model", "images", "images_ignored", "boxes"}; APs in [0, 1], None
        where no object is of that kind. The means are over the classes that the model knows.

    Raises:
        DataError, ModelError, UnusableModelError: input that cannot be measured, with what to do.
    """
    a = answer(model, data, split, imgsz, tiling, only, classes)
    scores = precision(a.images, a.truth, a.found, a.known)
    return {
        "map50_95": mean_precision(scores["all"]),
        "map50": mean_precision(scores["all"][:1]),
        **{f"ap_{size}": mean_precision(scores[size]) for size in SIZES},
        "per_class": {
            a.names[i]: {
                "ap50_95": mean_precision(scores["all"][..., k]),
                "ap50": mean_precision(scores["all"][:1, ..., k]),
            }
            for k, i in enumerate(a.known)
        },
        "classes_not_in_model": [
            name
            for i, name in enumerate(a.names)
            if i not in a.known and (not only or name in only)
        ],
        "images": len(a.images),
        "images_ignored": a.ignored,
        "boxes": len(a.truth),
    }


def answer(
    model,
    data: str | Path,
    split: str = "val",
    imgsz: ImageSize | None = None,
    tiling: str = "off",
    only: tuple[str, ...] = (),
    classes: Mapping[str, str] | None = None,
) -> Answers:
    """Run a model over one split of a data set; arguments and errors are those of `evaluate`."""
    dataset = load_data(data)
    folder = getattr(dataset, split, None) if split in ("train", "val", "test") else None
    if folder is None:
        raise DataError(
            f"{data} has no split {split!r}: use train, val or test, as far as it has them"
        )
    backend = _open(model, imgsz)
    detector = Detector(
        backend,
        confidence=CONFIDENCE,
        iou=IOU,
        max_detections=MAX_DETECTIONS,
        tiling=tiling,
        tile_overlap=parameter_defaults("detector.yaml")["tile_overlap"],
    )
    index = {name.strip().lower(): i for i, name in enumerate(dataset.names)}
    renamed = classes or {}
    to_data = [index.get(renamed.get(name, name).strip().lower()) for name in backend.spec.classes]
    if only:
        to_data = [i if i is not None and dataset.names[i] in only else None for i in to_data]
    known = sorted({i for i in to_data if i is not None})
    if not known:
        raise UnusableModelError(
            f"the model knows {list(backend.spec.classes)[:12]}, the data has "
            f"{list(dataset.names)}: no class in common"
        )

    images, truth, found, ignored = [], [], [], 0
    paths = image_paths(folder)
    for image_id, path in enumerate(track(paths, f"Evaluate {split}", "image")):
        sample = read_sample(path, len(dataset.names))
        if sample is None:
            ignored += 1
            continue
        height, width = sample.image.shape[:2]
        images.append({"id": image_id, "width": width, "height": height})
        for box, class_id in zip(sample.xyxy, sample.class_ids, strict=True):
            truth.append(annotation(len(truth) + 1, image_id, box, class_id))
        detections = detector(sample.image)
        ids = np.array([-1 if i is None else i for i in to_data])[detections.class_ids]
        kept = np.arange(len(ids))
        if classes:
            kept = nms(detections.xyxy, detections.scores, ids, IOU, MAX_DETECTIONS)
        for box, score, class_id in zip(
            detections.xyxy[kept], detections.scores[kept], ids[kept], strict=True
        ):
            if class_id >= 0:
                found.append({**annotation(0, image_id, box, class_id), "score": float(score)})
    if not images:
        raise DataError(f"no usable picture in {folder}")
    return Answers(dataset.names, known, paths, images, truth, found, ignored)


def _open(model, imgsz: ImageSize | None):
    if isinstance(model, nn.Module):
        return TorchBackend(model, imgsz)
    if not isinstance(model, (str, Path)):
        return model
    suffix = Path(model).suffix
    if suffix == ".onnx":
        return open_backend(model, runtime="onnxruntime")
    if suffix == ".pt":
        return TorchBackend(load_model(str(model))[0], imgsz)
    raise ModelError(f"{model}: expected a .pt or a .onnx file")
