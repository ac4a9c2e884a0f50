"""Postprocessing: from the network's output rows to boxes in the original image."""

from __future__ import annotations

import numpy as np

from drone_kd.core.arrays import Float32Array
from drone_kd.core.boxes import unletterbox
from drone_kd.core.detections import Detections
from drone_kd.core.model_spec import ModelSpec
from drone_kd.core.nms import nms
from drone_kd.core.preprocess import Letterbox


class InferenceError(RuntimeError):
    """Failed inference, or an output that breaks the model's contract; never an empty result."""


def decode(
    rows: Float32Array,
    spec: ModelSpec,
    placement: Letterbox,
    image_shape: tuple[int, ...],
    confidence: float | Float32Array,
    iou: float,
    max_detections: int,
) -> Detections:
    """Convert the network's output rows of one image to at most `max_detections`, best first.

    Boxes are in pixels of the original image; those outside it (in the padding) are dropped.

    Args:
        rows: (K, 6), one frame of the network's output; see `ModelSpec`.
        placement: what `letterbox` returned for the image.
        image_shape: (height, width, ...) of the original image in pixels.
        confidence: scores must be above this; or (classes,), one threshold per class.
        iou: NMS threshold of a dense head; an end-to-end head has no NMS.

    Raises:
        InferenceError: a wrong shape, a value not finite, a score not in [0, 1], an unknown class.
    """
    _check_rows(rows)
    thresholds = np.broadcast_to(np.asarray(confidence, np.float32), len(spec.classes))
    rows = rows[rows[:, 4] > thresholds.min()]
    class_ids = rows[:, 5].astype(np.int64)
    if ((class_ids != rows[:, 5]) | (class_ids < 0) | (class_ids >= len(spec.classes))).any():
        raise InferenceError(
            f"expected class ids 0 to {len(spec.classes) - 1}, got {rows[:, 5].tolist()}"
        )

    xyxy, scores = rows[:, :4], rows[:, 4]
    clipped = unletterbox(xyxy, placement, width=image_shape[1], height=image_shape[0])
    # Clipping leaves no area of a box in the padding.
    visible = (clipped[:, 0] < clipped[:, 2]) & (clipped[:, 1] < clipped[:, 3])
    visible &= scores > thresholds[class_ids]
    xyxy, clipped = xyxy[visible], clipped[visible]
    scores, class_ids = scores[visible], class_ids[visible]
    if spec.head == "dense":
        # On unclipped boxes, as in training.
        keep = nms(xyxy, scores, class_ids, iou, max_detections)
    else:
        keep = np.argsort(-scores, kind="stable")[:max_detections]
    return Detections(clipped[keep], scores[keep], class_ids[keep])


def _check_rows(rows: Float32Array) -> None:
    if rows.ndim != 2 or rows.shape[1] != 6:
        raise InferenceError(f"network output: expected rows of shape (any, 6), got {rows.shape}")
    if not np.isfinite(rows).all():
        raise InferenceError(
            "network output: expected finite values, got some that are not finite"
        )
    low, high = rows[:, 4].min(initial=0.0), rows[:, 4].max(initial=0.0)
    if low < 0 or high > 1:
        raise InferenceError(
            f"expected scores in [0, 1], got {low:g} to {high:g}: is the sigmoid missing?"
        )
