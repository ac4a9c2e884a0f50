# SPDX-License-Identifier: AGPL-3.0-or-later
"""Evaluation of a .pt or .onnx detector: mAP50-95, mAP50, AP by object size and per class.

An .onnx runs through `drone_kd.detector.Detector`. A .pt runs through the same letterbox, decoding
and NMS, with torch as the runtime. The figures are those of pycocotools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from drone_kd.backends import Backend, open_backend
from drone_kd.core.detections import Detections
from drone_kd.core.model_spec import ModelError
from drone_kd.core.nms import nms
from drone_kd.detector import Detector
from drone_kd.metrics import MAX_DETECTIONS, SIZES, annotation, mean_precision, precision
from drone_kd.paths import parameter_defaults
from drone_kd.progress import track
from drone_kd.text import one_line
from drone_kd_training.data.dataset import DataError, DataSet, image_paths, load_data, read_sample
from drone_kd_training.models.checkpoints import UnusableModelError, load_model
from drone_kd_training.models.torch_backend import ImageSize, TorchBackend

# The confidence is close to zero so that the precision-recall curve is complete; the IoU threshold
# is that of Ultralytics' validator.
CONFIDENCE, IOU = 0.001, 0.7

Evaluable = str | Path | nn.Module | Backend


@dataclass(frozen=True)
class SplitPredictions:
    """Ground truth and predictions of one split, in the format of `drone_kd.metrics`.

    Attributes:
        names: classes of the data set.
        known: indices of the classes that the model has.
        paths: every image of the split; an image's id is its index here.
        images: {"id", "width", "height"} of each image that was used.
        truth, predictions: annotations, the latter with a "score".
        ignored: number of images that could not be used.
    """

    names: tuple[str, ...]
    known: list[int]
    paths: list[Path]
    images: list[dict]
    truth: list[dict]
    predictions: list[dict]
    ignored: int


def evaluate(
    model: Evaluable,
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
            trained at); an .onnx has its own.
        tiling: see `drone_kd.detector.Detector`.
        only: classes of the data set to evaluate (default: all), for partly labelled data.
        classes: the model's class name -> the data set's, where they differ; predictions that
            become duplicates of one class go through NMS again.

    Returns {"map50_95", "map50", "ap_tiny", "ap_small", "ap_medium", "ap_large", "per_class":
    {name: {"ap50_95", "ap50", "ap_tiny", "ap_small", "ap_medium", "ap_large"}},
    "classes_not_in_model", "images", "images_ignored", "boxes"}. APs are in [0, 1], or None
    without an object of that kind. Means cover the classes that the model has; `over_classes`
    takes them over others.

    Raises DataError if the split is missing or has no usable image, ModelError if the model file
    cannot be opened, UnusableModelError if it is no detector, or has no class in common with the
    data.
    """
    result = predict_split(model, data, split, imgsz, tiling, only, classes)
    scores = precision(result.images, result.truth, result.predictions, result.known)
    return {
        "map50_95": mean_precision(scores["all"]),
        "map50": mean_precision(scores["all"][:1]),
        **{f"ap_{size}": mean_precision(scores[size]) for size in SIZES},
        "per_class": {
            result.names[i]: {
                "ap50_95": mean_precision(scores["all"][..., k]),
                "ap50": mean_precision(scores["all"][:1, ..., k]),
                **{f"ap_{size}": mean_precision(scores[size][..., k]) for size in SIZES},
            }
            for k, i in enumerate(result.known)
        },
        "classes_not_in_model": [
            name
            for i, name in enumerate(result.names)
            if i not in result.known and (not only or name in only)
        ],
        "images": len(result.images),
        "images_ignored": result.ignored,
        "boxes": len(result.truth),
    }


def over_classes(figures: dict, classes: Sequence[str]) -> dict[str, float | None]:
    """Return the means of `evaluate` over some classes of the data set.

    Models are compared over classes that all of them have. ``figures`` of a version that kept no
    sizes per class have None for these, unless ``classes`` are all that have an object.

    Raises:
        ValueError: the model was not evaluated on one of the classes.
    """
    per_class = figures["per_class"]
    if missing := [name for name in classes if "ap50_95" not in per_class.get(name, {})]:
        raise ValueError(
            f"expected figures of the class {one_line(missing[0])}, got none; evaluate again"
        )
    means = {"map50_95": "ap50_95", "map50": "ap50", **{f"ap_{s}": f"ap_{s}" for s in SIZES}}
    if {name for name, ap in per_class.items() if ap.get("ap50_95") is not None} <= {*classes}:
        return {mean: figures.get(mean) for mean in means}
    found = {mean: [per_class[n].get(key) for n in classes] for mean, key in means.items()}
    known = {mean: [ap for ap in aps if ap is not None] for mean, aps in found.items()}
    return {k: round(sum(aps) / len(aps), 5) if aps else None for k, aps in known.items()}


def predict_split(
    model: Evaluable,
    data: str | Path,
    split: str = "val",
    imgsz: ImageSize | None = None,
    tiling: str = "off",
    only: tuple[str, ...] = (),
    classes: Mapping[str, str] | None = None,
) -> SplitPredictions:
    """Run a model over one split of a data set; arguments and errors are those of `evaluate`."""
    dataset = load_data(data)
    folder = getattr(dataset, split, None) if split in ("train", "val", "test") else None
    if folder is None:
        raise DataError(
            f"{data} has no split {split!r}: use train, val or test, as far as it has them"
        )
    backend = _open(model, imgsz)
    overlap = parameter_defaults("detector.yaml")["tile_overlap"]
    tiles = {"tiling": tiling, "tile_overlap": overlap}
    detector = Detector(backend, CONFIDENCE, IOU, MAX_DETECTIONS, **tiles)
    to_data = class_map(backend.spec.classes, dataset, only, classes or {})
    known = sorted({*to_data.tolist()} - {-1})
    paths = image_paths(folder)
    images: list[dict] = []
    truth: list[dict] = []
    predictions: list[dict] = []
    for image_id, path in enumerate(track(paths, f"Evaluate {split}", "image")):
        sample = read_sample(path, len(dataset.names))
        if sample is None:
            continue
        height, width = sample.image.shape[:2]
        images.append({"id": image_id, "width": width, "height": height})
        for box, class_id in zip(sample.xyxy, sample.class_ids, strict=True):
            truth.append(annotation(len(truth) + 1, image_id, box, class_id))
        predictions += _annotations(detector(sample.image), image_id, to_data, bool(classes))
    if not images:
        raise DataError(f"no usable image in {folder}")
    ignored = len(paths) - len(images)
    return SplitPredictions(dataset.names, known, paths, images, truth, predictions, ignored)


def class_map(
    model_classes: tuple[str, ...],
    dataset: DataSet,
    only: tuple[str, ...],
    renamed: Mapping[str, str],
) -> np.ndarray:
    """Return the data set's class of each class of the model, int64 (C,); -1 without one."""
    wanted = [(i, name) for i, name in enumerate(dataset.names) if not only or name in only]
    index = {name.strip().lower(): i for i, name in wanted}
    to_data = [index.get(renamed.get(name, name).strip().lower(), -1) for name in model_classes]
    if max(to_data, default=-1) < 0:
        raise UnusableModelError(
            f"no class in common: the model has {list(model_classes)[:12]}, the data has "
            f"{list(dataset.names)}"
        )
    return np.array(to_data)


def _annotations(
    detections: Detections, image_id: int, to_data: np.ndarray, merged: bool
) -> list[dict]:
    """Convert detections to the data set's classes; ``merged`` classes go through NMS again."""
    ids = to_data[detections.class_ids]
    boxes, scores = detections.xyxy, detections.scores
    kept = nms(boxes, scores, ids, IOU, MAX_DETECTIONS) if merged else np.arange(len(ids))
    return [
        annotation(0, image_id, boxes[i], ids[i]) | {"score": float(scores[i])}
        for i in kept
        if ids[i] >= 0
    ]


def _open(model: Evaluable, imgsz: ImageSize | None) -> Backend:
    if isinstance(model, nn.Module):
        return TorchBackend(model, imgsz)
    if not isinstance(model, (str, Path)):
        return model
    suffix = Path(model).suffix
    if suffix == ".onnx":
        return open_backend(model, runtime="onnxruntime")
    if suffix == ".pt":
        return TorchBackend(load_model(str(model))[0], imgsz)
    raise ModelError(f"{model}: expected a .pt or .onnx file")
