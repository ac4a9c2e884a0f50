# SPDX-License-Identifier: AGPL-3.0-or-later
"""The two models of mining: the student (the deployed model) and the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from ensemble_boxes import weighted_boxes_fusion
from torch import nn

from drone_kd.backends import Backend, open_backend
from drone_kd.core.detections import Detections
from drone_kd.core.tiling import AUTO
from drone_kd.detector import Detector
from drone_kd.metrics import MAX_DETECTIONS
from drone_kd.paths import default_model_path, parameter_defaults
from drone_kd_training.mining.hardness import CONFIDENCE
from drone_kd_training.models.checkpoints import UnusableModelError, load_model, match_classes
from drone_kd_training.models.torch_backend import BoxBackend, TorchBackend
from drone_kd_training.teachers.teachers import BOX_HEADS, LOWEST_SCORE

# Stricter than in an evaluation, so that boxes of two passes are fused, not boxes of one.
_NMS_IOU = 0.5
_FUSE_IOU = 0.55


@dataclass(frozen=True)
class Models:
    """Student and teacher; the methods' predictions are in the student's classes.

    Attributes:
        names: the student's classes.
        student: one forward pass of the student: image -> Detections.
        to_student: (C,) the student's class by the teacher's, -1 for none.
        teacher: one forward pass of the teacher, in its own classes.
        labeller: the teacher with tiles and a low threshold, in its own classes.
    """

    names: tuple[str, ...]
    student: Detector
    to_student: np.ndarray
    teacher: Detector
    labeller: Detector

    def predict(self, image: np.ndarray) -> Detections:
        """Run the teacher once on a BGR uint8 (h, w, 3) image."""
        return self._translate(self.teacher(image))

    def label(self, image: np.ndarray) -> Detections:
        """Run the teacher on the image and its mirror image, with tiles, and fuse.

        A box that one of the two passes misses has half its score: it ends up in the ignore band
        or as background.
        """
        height, width = image.shape[:2]
        mirrored = self.labeller(np.ascontiguousarray(image[:, ::-1]))
        xyxy = mirrored.xyxy.copy()
        xyxy[:, [0, 2]] = width - mirrored.xyxy[:, [2, 0]]
        back = Detections(xyxy, mirrored.scores, mirrored.class_ids)
        passes = [self._translate(found) for found in (self.labeller(image), back)]
        return fuse(passes, width, height)

    def _translate(self, found: Detections) -> Detections:
        ids = self.to_student[found.class_ids]
        known = ids >= 0
        return Detections(found.xyxy[known], found.scores[known], ids[known])


def open_models(teacher: str, student: str | None) -> Models:
    """Open both models on the GPU if there is one, else on one core.

    Each is a .pt (with a Detect head, or RT-DETR) or .onnx; a student of None is the package's
    model. Raises UnusableModelError or ModelError if one cannot be used, or they share no class.
    """
    # Torch's rounding depends on the number of threads; one gives equal results everywhere.
    torch.set_num_threads(1)
    deployed = _open(str(default_model_path()) if student is None else student)
    teaching = _open(teacher)
    match = match_classes(deployed.spec.classes, teaching.spec.classes)
    to_student = np.full(len(teaching.spec.classes), -1, np.int64)
    for mine, theirs in match.pairs:
        to_student[theirs] = mine
    detector = partial(Detector, iou=_NMS_IOU, max_detections=MAX_DETECTIONS)
    overlap = parameter_defaults("detector.yaml")["tile_overlap"]
    return Models(
        names=deployed.spec.classes,
        student=detector(deployed, CONFIDENCE),
        to_student=to_student,
        teacher=detector(teaching, CONFIDENCE),
        labeller=detector(teaching, LOWEST_SCORE, tiling=AUTO, tile_overlap=overlap),
    )


def fuse(passes: list[Detections], width: int, height: int) -> Detections:
    """Fuse predictions in pixels of several forward passes on one image of this size.

    Weighted boxes fusion (Solovyev et al. 2021, arXiv:1910.13302): a box has the mean of its
    scores; a pass that misses it counts as 0.
    """
    size = np.array([width, height] * 2, np.float32)
    real = [(d, (d.xyxy[:, 2:] > d.xyxy[:, :2]).all(axis=1)) for d in passes]
    boxes, scores, labels = weighted_boxes_fusion(
        [np.clip(d.xyxy[kept] / size, 0, 1) for d, kept in real],
        [d.scores[kept] for d, kept in real],
        [d.class_ids[kept] for d, kept in real],
        iou_thr=_FUSE_IOU,
    )
    kept = scores >= LOWEST_SCORE
    return Detections(
        (boxes[kept] * size).astype(np.float32).reshape(-1, 4),
        np.clip(scores[kept], 0, 1).astype(np.float32),
        labels[kept].astype(np.int64),
    )


def _open(source: str) -> Backend:
    suffix = Path(source).suffix
    if suffix == ".onnx":
        return open_backend(source, runtime="onnxruntime")
    if suffix != ".pt":
        raise UnusableModelError(
            f"{source}: expected a model (.pt or .onnx), which can label new frames; a folder of "
            "predictions cannot"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, _ = load_model(source, also=BOX_HEADS)
    head = cast("nn.Sequential", model.model)[-1]
    if type(head).__name__ in BOX_HEADS:
        return BoxBackend(model, device)
    return TorchBackend(model, device=device)
