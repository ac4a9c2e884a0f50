# SPDX-License-Identifier: AGPL-3.0-or-later
"""Answers of several teachers for one picture become one: boxes in the student's classes.

A table of boxes is float32 (n, 6): x1, y1, x2, y2 in [0, 1] of the picture, score, class.
"""

from __future__ import annotations

import numpy as np

from drone_kd.core.boxes import iou, nms
from drone_kd_training.teachers.plan import Teacher
from drone_kd_training.teachers.soft_labels import IGNORE_BAND, NMS_IOU

# Boxes of two teachers that agree this much are of one object. Less than the 0.55 of the paper:
# two pixels off, a box of eight pixels agrees by no more.
FUSION_IOU = 0.45
MATCH_IOU = 0.5


def translate(
    table: np.ndarray, teacher: Teacher, source: str, names: tuple[str, ...]
) -> np.ndarray:
    """A teacher's own answers in the student's classes, without duplicates.

    What it calls car and van may be one class of the student's. Scores are bent at those from
    which on the teacher is right on this source.
    """
    ours = np.array(
        [names.index(teacher.classes[n]) if n in teacher.classes else -1 for n in teacher.names]
    )
    classes = ours[table[:, 5].astype(int)]
    table, classes = table[classes >= 0], classes[classes >= 0]
    sure = np.array([teacher.threshold(source, name) for name in names], np.float32)[classes]
    bent = bend(table[:, 4], sure)
    kept = nms(table[:, :4], bent, classes, NMS_IOU, len(table)) if len(table) else []
    found = np.concatenate([table[:, :4], bent[:, None], classes[:, None]], axis=1)
    return found[kept].astype(np.float32)


def bend(scores: np.ndarray, sure: np.ndarray | float) -> np.ndarray:
    """Scores (n,) in [0, 1], so moved that ``sure`` stands at the upper edge of
    `softlabels.IGNORE_BAND`: below it an answer is no label.
    """
    edge = IGNORE_BAND[1]
    above = edge + (1 - edge) * (scores - sure) / np.maximum(1 - sure, 1e-6)
    return np.where(scores < sure, edge * scores / sure, above)


def fuse(tables: list[np.ndarray], weights: list[np.ndarray]) -> np.ndarray:
    """One table of the teachers' tables (see `translate`).

    Weighted boxes fusion (Solovyev et al. 2021, arXiv:1910.13302), class by class. The score is
    the best of the weighted ones, as a share of the best weight: teachers are specialists, and
    what one of them is blind to shall not be voted down by it.

    Args:
        tables: one for each teacher, in the student's classes.
        weights: for each teacher (C,), its weight by class; 0 where it does not know the class.
    """
    from ensemble_boxes import weighted_boxes_fusion

    found = [np.zeros((0, 6), np.float32)]
    for class_id in range(len(weights[0]) if weights else 0):
        asked = [i for i, w in enumerate(weights) if w[class_id] > 0]
        own = [tables[i][tables[i][:, 5] == class_id] for i in asked]
        if len(own) == 1:
            found += own
        elif sum(map(len, own)):
            boxes, scores, _ = weighted_boxes_fusion(
                [np.clip(t[:, :4], 0, 1) for t in own],
                [t[:, 4] for t in own],
                [t[:, 5] for t in own],
                weights=[float(weights[i][class_id]) for i in asked],
                iou_thr=FUSION_IOU,
                conf_type="max",
            )
            rest = np.stack([scores, np.full(len(scores), class_id)], axis=1)
            found.append(np.concatenate([boxes, rest], axis=1).astype(np.float32))
    return np.concatenate(found)


def count_right(
    table: np.ndarray, truth: np.ndarray, class_id: int, threshold: float = IGNORE_BAND[1]
) -> tuple[int, int]:
    """How many answers of a class from ``threshold`` on are right, and how many there are.

    ``truth``: (m, 5), boxes as in the table and class. Best answers first take the label that
    they overlap most, by at least `MATCH_IOU`.
    """
    sure = table[(table[:, 5] == class_id) & (table[:, 4] >= threshold)]
    labels = truth[truth[:, 4] == class_id]
    if not len(sure) or not len(labels):
        return 0, len(sure)
    overlap = iou(sure[np.argsort(-sure[:, 4]), :4], labels[:, :4].astype(np.float32))
    right = 0
    for row in overlap:
        best = int(row.argmax())
        if row[best] >= MATCH_IOU:
            right += 1
            overlap[:, best] = 0
    return right, len(sure)
