"""Average precision, computed by pycocotools; the one place that imports it."""

from __future__ import annotations

import contextlib
import io

import numpy as np

# The number of boxes per picture is that of Ultralytics' validator, the field's yardstick.
MAX_DETECTIONS = 300
# Areas in pixels of the original picture: COCO's ranges, and "tiny" (under 16 px), which aerial
# frames are full of.
SIZES = {"tiny": (0, 16**2), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}


def annotation(id_: int, image_id: int, xyxy: np.ndarray, class_id: int) -> dict:
    """A box as COCO writes it; a detection has a "score", too."""
    x1, y1, x2, y2 = map(float, xyxy)
    box = [x1, y1, x2 - x1, y2 - y1]
    return {
        "id": id_,
        "image_id": image_id,
        "category_id": int(class_id),
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
    }


def precision(
    images: list[dict], truth: list[dict], found: list[dict], classes: list[int]
) -> dict[str, np.ndarray]:
    """Precision at every step of recall, over all sizes ("all") and for each of SIZES.

    Args:
        images: {"id"} of every picture.
        truth: annotations, with ids from 1 on.
        found: annotations with a "score".
        classes: the classes that count.

    Returns:
        Arrays (IoU thresholds 0.5 to 0.95, recall steps, classes); -1 where undefined.

    Raises:
        ImportError: pycocotools is not installed.
    """
    evaluation = match_frames(images, truth, found, classes)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    values = evaluation.eval["precision"]  # (IoU, recall, class, area, max detections)
    return {label: values[..., k, 0] for k, label in enumerate(evaluation.params.areaRngLbl)}


def match_frames(images: list[dict], truth: list[dict], found: list[dict], classes: list[int]):
    """Match what was found with what there is, frame by frame: pycocotools' COCOeval, evaluated
    but not yet accumulated over the frames. Arguments and errors are those of `precision`.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    coco = COCO()
    coco.dataset = {
        "images": images,
        "annotations": truth,
        "categories": [{"id": i} for i in classes],
    }
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its own progress
        coco.createIndex()
        detections = COCO()
        detections.dataset = {
            **coco.dataset,
            "annotations": [{**d, "id": i} for i, d in enumerate(found, start=1)],
        }
        detections.createIndex()
        evaluation = COCOeval(coco, detections, "bbox")
        evaluation.params.catIds = classes
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.params.areaRng = [(0, 1e10), *SIZES.values()]
        evaluation.params.areaRngLbl = ["all", *SIZES]
        evaluation.evaluate()
    return evaluation


def mean_precision(values: np.ndarray) -> float | None:
    """The mean of what is defined; None where nothing is."""
    valid = values[values > -1]
    return round(float(valid.mean()), 5) if valid.size else None
