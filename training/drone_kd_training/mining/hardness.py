# SPDX-License-Identifier: AGPL-3.0-or-later
"""How hard a frame is for the student: pure functions on boxes."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from drone_kd.core.boxes import iou
from drone_kd.core.detections import Detections

# Predictions below this confidence are noise in both models.
CONFIDENCE = 0.1
_SAME_IOU = 0.5
# Two boxes in neighbouring frames are one object if the distance of their centres, after motion
# compensation, is at most this many times their size.
_SAME_DISTANCE = 1.5


def disagreement(teacher: Detections, student: Detections) -> float:
    """Return the share of predictions that only one model has, 0 to (almost) 1.

    A pair counts with the difference of its scores, an unmatched box with its whole score. The sum
    is divided by all scores plus 1: a single weak box is no disagreement. Both models' predictions
    are in the student's classes.
    """
    overlap = iou(teacher.xyxy, student.xyxy)
    overlap[teacher.class_ids[:, None] != student.class_ids[None, :]] = 0
    return _unmatched(teacher.scores, student.scores, overlap, _SAME_IOU)


def flicker(
    before: Detections, now: Detections, shift: tuple[float, float], size: tuple[int, int]
) -> float:
    """Return the share of predictions missing in the neighbouring frame, 0 to (almost) 1.

    ``before``, ``now``: the student's predictions for neighbouring frames of a flight. ``shift``:
    motion of the scene between them, as shares of ``size``, (width, height) in pixels.
    """
    centre = [(d.xyxy[:, :2] + d.xyxy[:, 2:]) / 2 for d in (before, now)]
    extent = [np.sqrt(np.prod(d.xyxy[:, 2:] - d.xyxy[:, :2], axis=1)) for d in (before, now)]
    moved = centre[0] + np.array(shift, np.float32) * np.array(size, np.float32)
    distance = np.linalg.norm(moved[:, None] - centre[1][None], axis=-1)
    limit = _SAME_DISTANCE * np.maximum(extent[0][:, None], extent[1][None]) + 1e-6
    near = np.maximum(1 - distance / limit, 0)
    near[before.class_ids[:, None] != now.class_ids[None, :]] = 0
    return _unmatched(before.scores, now.scores, near, 0.0)


def _unmatched(a: np.ndarray, b: np.ndarray, similarity: np.ndarray, least: float) -> float:
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    paired = similarity[rows, columns] > least
    rows, columns = rows[paired], columns[paired]
    left = a.sum() - a[rows].sum() + b.sum() - b[columns].sum()
    gap = np.abs(a[rows] - b[columns]).sum()
    return float((left + gap) / (1 + a.sum() + b.sum() - np.minimum(a[rows], b[columns]).sum()))
