# SPDX-License-Identifier: AGPL-3.0-or-later
"""How hard a frame is for the student: pure functions on boxes."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from drone_kd.core.boxes import iou
from drone_kd.core.detections import Detections

# Answers below this are noise to both models.
CONFIDENCE = 0.1
_SAME_IOU = 0.5
# Two boxes of neighbouring frames are one object if their centres, the camera's motion taken
# away, are no farther apart than this many times their size.
_SAME_DISTANCE = 1.5


def disagreement(teacher: Detections, student: Detections) -> float:
    """How much of what either sees the other does not, from 0 to (almost) 1.

    Classes are the student's in both. Of a pair the difference of its scores counts, of what has
    no partner its whole score; against all scores, and 1: a single weak box is no disagreement.
    """
    overlap = iou(teacher.xyxy, student.xyxy)
    overlap[teacher.class_ids[:, None] != student.class_ids[None, :]] = 0
    return _unmatched(teacher.scores, student.scores, overlap, _SAME_IOU)


def flicker(
    before: Detections, now: Detections, shift: tuple[float, float], size: tuple[int, int]
) -> float:
    """How much of what the student sees is missing in the neighbouring frame, 0 to (almost) 1.

    Args:
        before, now: in two frames of one flight.
        shift: of the scene between them, as shares of `size`, (width, height) in pixels.
    """
    centre = [(d.xyxy[:, :2] + d.xyxy[:, 2:]) / 2 for d in (before, now)]
    extent = [np.sqrt(np.prod(d.xyxy[:, 2:] - d.xyxy[:, :2], axis=1)) for d in (before, now)]
    moved = centre[0] + np.array(shift, np.float32) * np.array(size, np.float32)
    distance = np.linalg.norm(moved[:, None] - centre[1][None], axis=-1)
    limit = _SAME_DISTANCE * np.maximum(extent[0][:, None], extent[1][None]) + 1e-6
    near = np.maximum(1 - distance / limit, 0)
    near[before.class_ids[:, None] != now.class_ids[None, :]] = 0
    return _unmatched(before.scores, now.scores, near, 0.0)


def _unmatched(a: np.ndarray, b: np.ndarray, alike: np.ndarray, least: float) -> float:
    rows, columns = linear_sum_assignment(alike, maximize=True)
    paired = alike[rows, columns] > least
    rows, columns = rows[paired], columns[paired]
    left = a.sum() - a[rows].sum() + b.sum() - b[columns].sum()
    gap = np.abs(a[rows] - b[columns]).sum()
    return float((left + gap) / (1 + a.sum() + b.sum() - np.minimum(a[rows], b[columns]).sum()))
