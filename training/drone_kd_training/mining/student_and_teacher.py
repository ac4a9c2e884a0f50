# SPDX-License-Identifier: AGPL-3.0-or-later
"""The two models that look at a flight: the one that flies, and the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ensemble_boxes import weighted_boxes_fusion

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

# Of one look; stricter than that of an evaluation, so that looks are fused and not boxes of one.
_NMS_IOU = 0.5
_FUSE_IOU = 0.55


@dataclass(frozen=True)
class Models:
    """Student and teacher; all answers are in the student's classes.

    Attributes:
        names: the student's classes.
        student: a quick look at a frame: image -> Detections.
        glance: the teacher's, as quick.
        label: the teacher's careful one: whole and in tiles, as it is and mirrored, fused.
    """

    names: tuple[str, ...]
    student: Detector
    to_student: np.ndarray
    glancing: Detector
    careful: Detector

    def glance(self, image: np.ndarray) -> Detections:
        return self._translate(self.glancing(image))

    def label(self, image: np.ndarray) -> Detections:
        """Boxes that one of the two looks misses have half their score: they end up in the
        ignore band, or as background.
        """
        height, width = image.shape[:2]
        mirrored = self.careful(np.ascontiguousarray(image[:, ::-1]))
        xyxy = mirrored.xyxy.copy()
        xyxy[:, [0, 2]] = width - mirrored.xyxy[:, [2, 0]]
        back = Detections(xyxy, mirrored.scores, mirrored.class_ids)
        looks = [self._translate(look) for look in (self.careful(image), back)]
        return fuse(looks, width, height)

    def _translate(self, found: Detections) -> Detections:
        ids = self.to_student[found.class_ids]
        known = ids >= 0
        return Detections(found.xyxy[known], found.scores[known], ids[known])


def open_models(teacher: str, student: str | None) -> Models:
    """Open both models on the GPU if there is one, else on one core.

    Args:
        teacher, student: .pt (with a Detect head, or RT-DETR) or .onnx; a student of None is the
            package's model.

    Raises:
        UnusableModelError, ModelError: a model that cannot be used, or no class in common.
    """
    # With another number of threads torch rounds differently: whatever computes, the same result.
    torch.set_num_threads(1)
    flying = _open(str(default_model_path()) if student is None else student)
    teaching = _open(teacher)
    match = match_classes(flying.spec.classes, teaching.spec.classes)
    to_student = np.full(len(teaching.spec.classes), -1, np.int64)
    for mine, theirs in match.pairs:
        to_student[theirs] = mine
    detector = partial(Detector, iou=_NMS_IOU, max_detections=MAX_DETECTIONS)
    overlap = parameter_defaults("detector.yaml")["tile_overlap"]
    return Models(
        names=flying.spec.classes,
        student=detector(flying, CONFIDENCE),
        to_student=to_student,
        glancing=detector(teaching, CONFIDENCE),
        careful=detector(teaching, LOWEST_SCORE, tiling=AUTO, tile_overlap=overlap),
    )


def fuse(looks: list[Detections], width: int, height: int) -> Detections:
    """Bring several looks at one picture together: weighted boxes fusion (Solovyev et al. 2021,
    arXiv:1910.13302). A box has the mean of its scores, of looks that miss it 0.
    """
    size = np.array([width, height] * 2, np.float32)
    real = [(d.xyxy[:, 2:] > d.xyxy[:, :2]).all(axis=1) for d in looks]
    boxes, scores, labels = weighted_boxes_fusion(
        [np.clip(d.xyxy[r] / size, 0, 1) for d, r in zip(looks, real, strict=True)],
        [d.scores[r] for d, r in zip(looks, real, strict=True)],
        [d.class_ids[r] for d, r in zip(looks, real, strict=True)],
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
            f"{source}: expected a model (.pt or .onnx): predictions say nothing of new frames"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, _ = load_model(source, also=BOX_HEADS)
    if type(model.model[-1]).__name__ in BOX_HEADS:
        return BoxBackend(model, device)
    return TorchBackend(model, device=device)
