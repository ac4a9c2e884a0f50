"""From the rows that a network gives to boxes in the original picture."""

from __future__ import annotations

import numpy as np

from drone_kd.core.boxes import nms, unletterbox
from drone_kd.core.detections import Detections
from drone_kd.core.model_spec import ModelSpec
from drone_kd.core.preprocess import Letterbox


class InferenceError(RuntimeError):
    """The network gave no usable answer. That is a failure, never an empty picture."""


def decode(
    rows: np.ndarray,
    spec: ModelSpec,
    placement: Letterbox,
    image_shape: tuple[int, ...],
    confidence: float | np.ndarray,
    iou: float,
    max_detections: int,
) -> Detections:
    """Turn the rows that the network gave for one picture into detections.

    Args:
        rows: float32 (K, 6), one frame of the network's output; see `ModelSpec`.
        spec: the model's description of itself.
        placement: what `letterbox` returned for the picture.
        image_shape: (height, width, ...) of the original picture in pixels.
        confidence: scores must be greater than this; or float32 (classes,), one for each class.
        iou: overlap above which a dense head's weaker box of the same class is dropped.
        max_detections: keep at most this many, best first.

    Returns:
        Detections in pixels of the original picture, best score first. Boxes that lie outside
        the picture (in the padding) are left out.

    Raises:
        InferenceError: the shape is wrong, a value is not finite, a score is outside [0, 1], or
            a class id is unknown.
    """
    if rows.ndim != 2 or rows.shape[1] != 6:
        raise InferenceError(f"network output: expected rows of shape (any, 6), got {rows.shape}")
    if not np.isfinite(rows).all():
        raise InferenceError("the network's output holds values that are not finite")
    scores = rows[:, 4]
    if scores.min(initial=0.0) < 0 or scores.max(initial=0.0) > 1:
        raise InferenceError(
            f"expected scores in [0, 1], got {scores.min():g} to {scores.max():g}: is the sigmoid "
            "missing?"
        )
    thresholds = np.broadcast_to(np.asarray(confidence, np.float32), len(spec.classes))
    rows = rows[scores > thresholds.min()]
    class_ids = rows[:, 5].astype(np.int64)
    if ((class_ids != rows[:, 5]) | (class_ids < 0) | (class_ids >= len(spec.classes))).any():
        raise InferenceError(
            f"expected class ids 0 to {len(spec.classes) - 1}, got {rows[:, 5].tolist()}"
        )

    xyxy, scores = rows[:, :4], rows[:, 4]
    in_picture = unletterbox(xyxy, placement, width=image_shape[1], height=image_shape[0])
    # Clipping leaves nothing of a box in the padding, and nothing can be done with an empty one.
    visible = (in_picture[:, 0] < in_picture[:, 2]) & (in_picture[:, 1] < in_picture[:, 3])
    visible &= scores > thresholds[class_ids]
    xyxy, in_picture = xyxy[visible], in_picture[visible]
    scores, class_ids = scores[visible], class_ids[visible]
    if spec.head == "dense":
        # On unclipped boxes, as in training.
        keep = nms(xyxy, scores, class_ids, iou, max_detections)
    else:
        keep = np.argsort(-scores, kind="stable")[:max_detections]
    return Detections(in_picture[keep], scores[keep], class_ids[keep])
