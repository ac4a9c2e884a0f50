"""Average precision (AP), computed by pycocotools; the only module that imports it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from drone_kd.core.arrays import Float32Array

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pycocotools.cocoeval import COCOeval

# Maximum number of boxes per image, as in Ultralytics' validator.
MAX_DETECTIONS = 300
# Areas in square pixels of the original image: COCO's ranges, and "tiny" (under 16 x 16 px), which
# is frequent in aerial images.
SIZES = {"tiny": (0, 16**2), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}


def annotation(id_: int, image_id: int, xyxy: Float32Array, class_id: int) -> dict[str, Any]:
    """Return a box, (4,) in pixels, as a COCO annotation; a prediction also needs a "score"."""
    x1, y1, x2, y2 = map(float, xyxy)
    width, height = x2 - x1, y2 - y1
    box = {"bbox": [x1, y1, width, height], "area": width * height}
    return {"id": id_, "image_id": image_id, "category_id": int(class_id), **box, "iscrowd": 0}


def precision(
    images: list[dict[str, Any]],
    ground_truth: list[dict[str, Any]],
    predictions: list[dict[str, Any]],
    classes: list[int],
    sizes: Mapping[str, tuple[float, float]] = SIZES,
) -> dict[str, NDArray[np.float64]]:
    """Return the precision at every recall step, for all sizes ("all") and each of `sizes`.

    Args:
        images: {"id"} of each image.
        ground_truth: annotations, with ids ≥ 1.
        predictions: annotations with a "score".
        classes: ids of the evaluated classes.
        sizes: names and areas of the sizes that are evaluated, besides "all"; each takes its time.

    Returns:
        Per size an array (IoU thresholds 0.5 to 0.95, recall steps, classes); -1 if undefined.

    Raises:
        ImportError: pycocotools is not installed.
    """
    evaluation = match_frames(images, ground_truth, predictions, classes, sizes)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    values = evaluation.eval["precision"]  # (IoU, recall, class, area, max detections)
    return {label: values[..., k, 0] for k, label in enumerate(evaluation.params.areaRngLbl)}


def match_frames(
    images: list[dict[str, Any]],
    ground_truth: list[dict[str, Any]],
    predictions: list[dict[str, Any]],
    classes: list[int],
    sizes: Mapping[str, tuple[float, float]] = SIZES,
) -> COCOeval:
    """Match predictions with ground truth image by image; arguments as of `precision`.

    Returns:
        The evaluation, not yet accumulated over the images.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    coco, detections = COCO(), COCO()
    categories = [{"id": i} for i in classes]
    numbered = [{**p, "id": i} for i, p in enumerate(predictions, start=1)]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its own progress
        for boxes, annotations in ((coco, ground_truth), (detections, numbered)):
            boxes.dataset = {
                "images": images,
                "annotations": annotations,
                "categories": categories,
            }
            boxes.createIndex()
        evaluation = COCOeval(coco, detections, "bbox")
        evaluation.params.catIds = classes
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.params.areaRng = [(0, 1e10), *sizes.values()]
        evaluation.params.areaRngLbl = ["all", *sizes]
        evaluation.evaluate()
    return evaluation


def mean_precision(values: NDArray[np.float64]) -> float | None:
    """Return the mean of the defined values (AP); None if no value is defined."""
    valid = values[values > -1]
    return round(float(valid.mean()), 5) if valid.size else None
