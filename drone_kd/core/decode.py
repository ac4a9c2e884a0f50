"""From a network's raw output to boxes in the original picture."""

from __future__ import annotations

import numpy as np

from drone_kd.core.boxes import cxcywh_to_xyxy, nms, unletterbox
from drone_kd.core.detections import Detections
from drone_kd.core.preprocess import Letterbox
from drone_kd.core.spec import ModelSpec, shape_matches


class InferenceError(RuntimeError):
    """The network gave no usable answer. That is a failure, never an empty picture."""


def decode(
    output: np.ndarray,
    spec: ModelSpec,
    placement: Letterbox,
    image_shape: tuple[int, ...],
    confidence: float,
    iou: float,
    max_detections: int,
) -> Detections:
    """Turn one raw network output into detections.

    Args:
        output: float32 (1, 4 + classes, A) or (1, K, 6), as `spec.head` says.
        spec: the model's description of itself.
        placement: what `letterbox` returned for the picture.
        image_shape: (height, width, ...) of the original picture in pixels.
        confidence: scores must be greater than this.
        iou: overlap above which a dense head's weaker box of the same class is dropped.
        max_detections: keep at most this many, best first.

    Returns:
        Detections in pixels of the original picture, best score first. Boxes that lie outside
        the picture (in the padding) are left out.

    Raises:
        InferenceError: the shape is wrong, a value is not finite, a score is outside [0, 1], or
            a class id is unknown.
    """
    if not shape_matches(output.shape, spec.output_shape):
        expected = str(spec.output_shape).replace("None", "any")
        raise InferenceError(f"{spec.head} output: expected shape {expected}, got {output.shape}")
    if not np.isfinite(output).all():
        raise InferenceError("the network's output holds values that are not finite")

    if spec.head == "dense":
        xyxy, scores, class_ids = _dense_candidates(output[0], confidence)
    else:
        xyxy, scores, class_ids = _end2end_candidates(output[0], confidence, len(spec.classes))

    in_picture = unletterbox(xyxy, placement, width=image_shape[1], height=image_shape[0])
    # Clipping leaves nothing of a box in the padding, and nothing can be done with an empty one.
    visible = (in_picture[:, 0] < in_picture[:, 2]) & (in_picture[:, 1] < in_picture[:, 3])
    xyxy, in_picture = xyxy[visible], in_picture[visible]
    scores, class_ids = scores[visible], class_ids[visible]
    if spec.head == "dense":
        # On unclipped boxes, as in training.
        keep = nms(xyxy, scores, class_ids, iou, max_detections)
    else:
        keep = np.argsort(-scores, kind="stable")[:max_detections]
    return Detections(in_picture[keep], scores[keep], class_ids[keep])


def _dense_candidates(
    output: np.ndarray, confidence: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the (N, 4) xyxy in network px, (N,) scores and (N,) class ids worth a look."""
    class_scores = output[4:]
    best = class_scores.max(axis=0)
    _check_scores(class_scores.min(initial=0.0), best.max(initial=0.0))
    anchors = np.flatnonzero(best > confidence)
    class_ids = class_scores[:, anchors].argmax(axis=0)
    return cxcywh_to_xyxy(output[:4, anchors].T), best[anchors], class_ids.astype(np.int64)


def _end2end_candidates(
    output: np.ndarray, confidence: float, classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the (N, 4) xyxy in network px, (N,) scores and (N,) class ids worth a look."""
    _check_scores(output[:, 4].min(initial=0.0), output[:, 4].max(initial=0.0))
    rows = output[output[:, 4] > confidence]
    class_ids = rows[:, 5].astype(np.int64)
    if ((class_ids != rows[:, 5]) | (class_ids < 0) | (class_ids >= classes)).any():
        raise InferenceError(f"expected class ids 0 to {classes - 1}, got {rows[:, 5].tolist()}")
    return rows[:, :4], rows[:, 4], class_ids


def _check_scores(lowest: float, highest: float) -> None:
    if lowest < 0 or highest > 1:
        raise InferenceError(
            f"expected scores in [0, 1], got {lowest:g} to {highest:g}: is the sigmoid missing?"
        )
