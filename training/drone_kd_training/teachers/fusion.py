# SPDX-License-Identifier: AGPL-3.0-or-later
"""Fusion of several teachers' predictions for one image, in the student's classes.

A table of boxes is float32 (n, 6): x1, y1, x2, y2 in [0, 1] of the image, score, class.
"""

from __future__ import annotations

import numpy as np

from drone_kd.core.boxes import iou
from drone_kd.core.nms import nms
from drone_kd_training.teachers.soft_labels import IGNORE_BAND, NMS_IOU
from drone_kd_training.teachers.teaching_plan import Teacher

# Smallest IoU of two teachers' boxes of one object. Less than the 0.55 of the paper: an 8-pixel
# box that is 2 pixels off has no more.
FUSION_IOU = 0.45
MATCH_IOU = 0.5


def translate(
    table: np.ndarray, teacher: Teacher, source: str, names: tuple[str, ...]
) -> np.ndarray:
    """Convert a teacher's predictions to the student's classes, ``names``.

    Several classes of the teacher may be one of the student's: NMS removes duplicates. Scores are
    rescaled by the teacher's thresholds for the source of this name.
    """
    mapped = map(teacher.classes.get, teacher.names)
    ours = np.array([-1 if name is None else names.index(name) for name in mapped])
    classes = ours[table[:, 5].astype(int)]
    table, classes = table[classes >= 0], classes[classes >= 0]
    confident = np.array([teacher.threshold(source, name) for name in names], np.float32)[classes]
    scores = rescale(table[:, 4], confident)
    found = np.concatenate([table[:, :4], scores[:, None], classes[:, None]], axis=1)
    if len(found):
        found = found[nms(table[:, :4], scores, classes, NMS_IOU, len(table))]
    return found.astype(np.float32)


def rescale(scores: np.ndarray, confident: np.ndarray | float) -> np.ndarray:
    """Rescale scores (n,) in [0, 1] so that a threshold becomes the upper edge of `IGNORE_BAND`.

    Predictions above ``confident``, one threshold or (n,) in (0, 1], are pseudo-labels.
    """
    edge = IGNORE_BAND[1]
    above = edge + (1 - edge) * (scores - confident) / np.maximum(1 - confident, 1e-6)
    return np.where(scores < confident, edge * scores / confident, above)


def fuse(tables: list[np.ndarray], weights: list[np.ndarray]) -> np.ndarray:
    """Fuse the tables of several teachers (see `translate`) into one.

    Weighted boxes fusion (Solovyev et al. 2021, arXiv:1910.13302), per class. A fused box has the
    maximum of its weighted scores, divided by the largest weight: teachers are specialists, and
    one that misses an object must not vote it down. The ``weights`` of a teacher are (C,), by
    class; 0 for a class that it does not know.
    """
    from ensemble_boxes import weighted_boxes_fusion

    found = [np.zeros((0, 6), np.float32)]
    for class_id in range(len(weights[0]) if weights else 0):
        knowing = [i for i, w in enumerate(weights) if w[class_id] > 0]
        own = [tables[i][tables[i][:, 5] == class_id] for i in knowing]
        if len(own) == 1:
            found += own
        elif sum(map(len, own)):
            boxes, scores, _ = weighted_boxes_fusion(
                [np.clip(t[:, :4], 0, 1) for t in own],
                [t[:, 4] for t in own],
                [t[:, 5] for t in own],
                weights=[float(weights[i][class_id]) for i in knowing],
                iou_thr=FUSION_IOU,
                conf_type="max",
            )
            rest = np.stack([scores, np.full(len(scores), class_id)], axis=1)
            found.append(np.concatenate([boxes, rest], axis=1).astype(np.float32))
    return np.concatenate(found)


def count_right(
    table: np.ndarray, truth: np.ndarray, class_id: int, threshold: float = IGNORE_BAND[1]
) -> tuple[int, int]:
    """Count the true positives and all predictions of a class with a score ≥ ``threshold``.

    In the order of their scores, predictions take the label with the largest IoU ≥ `MATCH_IOU`.
    ``truth`` are labels (m, 5): boxes as in the table, class.
    """
    confident = table[(table[:, 5] == class_id) & (table[:, 4] >= threshold)]
    labels = truth[truth[:, 4] == class_id]
    if not len(confident) or not len(labels):
        return 0, len(confident)
    overlap = iou(confident[np.argsort(-confident[:, 4]), :4], labels[:, :4].astype(np.float32))
    right = 0
    for row in overlap:
        best = int(row.argmax())
        if row[best] >= MATCH_IOU:
            right += 1
            overlap[:, best] = 0
    return right, len(confident)
