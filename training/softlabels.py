# SPDX-License-Identifier: AGPL-3.0-or-later
"""Soft labels: boxes with class probabilities, and frames without labels.

Both travel through Ultralytics' augmentation as rows of the label table, so that whatever moves a
label moves them: a row's class number is then no class but says which answer it is, or that its
box is a frame nobody labelled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_convert
from ultralytics.utils.tal import TaskAlignedAssigner

# In a frame without labels an answer of the teacher above the band is a label, one below it is
# background, and what lies between teaches neither (else the teacher's misses become negatives).
IGNORE_BAND = (0.1, 0.6)
NMS_IOU = 0.6


@dataclass(frozen=True)
class Boxes:
    """Answers over a batch: ``frame`` (n,) index, ``cxcywh`` (n, 4) in [0, 1] of the input,
    ``scores`` (n, C) in [0, 1].
    """

    frame: Tensor
    cxcywh: Tensor
    scores: Tensor

    def __getitem__(self, chosen: Tensor) -> Boxes:
        return Boxes(self.frame[chosen], self.cxcywh[chosen], self.scores[chosen])

    def without_duplicates(self, floor: float) -> Boxes:
        """The answers from ``floor`` on that survive non-maximum suppression per frame, class."""
        best, class_id = self.scores.max(dim=-1)
        kept = (best >= floor).nonzero().flatten()
        xyxy = box_convert(self.cxcywh[kept], "cxcywh", "xyxy")
        group = self.frame[kept] * self.scores.shape[-1] + class_id[kept]
        return self[kept[batched_nms(xyxy.float(), best[kept].float(), group, NMS_IOU)]]


def extend_labels(
    labels: list[dict], classes: int, unlabelled: set[str], predictions=None
) -> tuple[Tensor, int]:
    """Append rows to Ultralytics' label dictionaries, in place.

    Args:
        labels: of a YOLODataset.
        classes: number of classes of the data.
        unlabelled: im_file of the frames that nobody labelled; what labels they have are dropped.
        predictions: a `training.teachers.Predictions`, or None.

    Returns:
        The scores (n, C) of all rows that are answers, and the number of frames that have some.
    """
    scores: list[np.ndarray] = []
    count = frames = 0
    for label in labels:
        rows = [] if label["im_file"] in unlabelled else [(label["cls"], label["bboxes"])]
        if label["im_file"] in unlabelled:
            rows.append((np.array([[classes]]), np.array([[0.5, 0.5, 1.0, 1.0]])))
        stem = Path(label["im_file"]).stem
        answer = None
        if predictions is not None:
            # Tools that write COCO results turn "000123" into 123.
            answer = predictions.found.get(stem) or predictions.found.get(stem.lstrip("0"))
        if answer is not None:
            boxes, own = answer
            height, width = label["shape"]
            size = np.array([width, height, width, height]) if predictions.pixels else 1.0
            ids = classes + 1 + count + np.arange(len(own))
            rows.append((ids[:, None], boxes / size))
            scores.append(own)
            count += len(own)
            frames += 1
        label["cls"] = np.concatenate([r[0] for r in rows]).astype(np.float32).reshape(-1, 1)
        label["bboxes"] = np.concatenate([r[1] for r in rows]).astype(np.float32).reshape(-1, 4)
    table = np.concatenate(scores) if scores else np.zeros((0, classes), np.float32)
    return torch.from_numpy(table), frames


def split_batch(batch: dict, classes: int, scores: Tensor) -> dict:
    """Take the rows that `extend_labels` appended out of a batch again.

    Adds ``answers`` (`Boxes`) and ``regions`` (`Boxes` without scores: where a frame without
    labels lies in each augmented picture).
    """
    row = batch["cls"].flatten().long()
    answer, region = row > classes, row == classes
    frame, boxes = batch["batch_idx"].long(), batch["bboxes"]
    found = Boxes(frame[answer], boxes[answer], scores.to(boxes)[row[answer] - classes - 1])
    regions = Boxes(frame[region], boxes[region], boxes.new_zeros(int(region.sum()), 0))
    true = row < classes
    labels = {key: batch[key][true] for key in ("cls", "bboxes", "batch_idx")}
    return {**batch, **labels, "answers": found, "regions": regions}


def add_sure_answers(batch: dict, answers: Boxes) -> dict:
    """Labels for what the teacher is sure of in the regions without labels: a batch with them.

    ``answers``: without duplicates, scores in the student's classes.
    """
    best, class_id = answers.scores.max(dim=-1)
    sure = (best > IGNORE_BAND[1]) & _in_regions(answers.frame, answers.cxcywh[:, :2], batch)
    frame = torch.cat([batch["batch_idx"], answers.frame[sure].to(batch["batch_idx"])])
    order = frame.argsort(stable=True)  # Ultralytics' losses take a frame's labels as a stretch
    boxes = torch.cat([batch["bboxes"], answers.cxcywh[sure].to(batch["bboxes"])])
    classes = torch.cat([batch["cls"], class_id[sure, None].to(batch["cls"])])
    return {
        **batch,
        "cls": classes[order],
        "bboxes": boxes[order],
        "batch_idx": frame[order],
    }


def negatives_kept(batch: dict, answers: Boxes, centres: Tensor) -> Tensor:
    """Which anchors may be told that there is nothing: (B, N) of 1 and 0.

    ``centres``: (N, 2) of the anchors, in [0, 1] of the input. An anchor inside an answer of the
    ignore band, in a region without labels, is left alone.
    """
    best = answers.scores.amax(dim=-1)
    band = answers[(best >= IGNORE_BAND[0]) & (best <= IGNORE_BAND[1])]
    band = band[_in_regions(band.frame, band.cxcywh[:, :2], batch)]
    kept = centres.new_ones(len(batch["img"]), len(centres))
    for frame, box in zip(band.frame.tolist(), band.cxcywh, strict=True):
        kept[frame][((centres - box[:2]).abs() <= box[2:] / 2).all(dim=-1)] = 0.0
    return kept


def _in_regions(frame: Tensor, points: Tensor, batch: dict) -> Tensor:
    regions = batch["regions"]
    same = frame[:, None] == regions.frame[None]
    distance = (points[:, None] - regions.cxcywh[None, :, :2]).abs()
    return (same & (distance <= regions.cxcywh[None, :, 2:] / 2).all(dim=-1)).any(dim=-1)


def assign(
    answers: Boxes, scores: Tensor, xyxy: Tensor, centres: Tensor, strides: list[int], size: float
) -> tuple[Tensor, Tensor]:
    """Give the student's anchors the answers they are to learn, as labels are given to them.

    Task-aligned assignment (TOOD, Feng et al. ICCV 2021, arXiv:2108.07755), as the detection loss
    uses it; an answer's probabilities are scaled by how well its anchor is aligned.

    Args:
        answers: scores in the classes that are compared.
        scores: the student's probabilities (B, N, C) of these classes.
        xyxy: the student's boxes (B, N, 4), pixels.
        centres: of the anchors (N, 2), pixels.
        strides: of the student's levels.
        size: side of the input, pixels.

    Returns:
        Target probabilities (B, N, C), 0 where nothing was assigned, and boxes (B, N, 4).
    """
    frames, classes = scores.shape[0], scores.shape[-1]
    most = int(answers.frame.bincount(minlength=frames).max()) if len(answers.frame) else 0
    if most == 0:
        return torch.zeros_like(scores), torch.zeros_like(xyxy)
    boxes = xyxy.new_zeros(frames, most, 4)
    full = scores.new_zeros(frames, most, classes)
    valid = scores.new_zeros(frames, most, 1)
    for frame in range(frames):
        own = answers[answers.frame == frame]
        n = len(own.frame)
        boxes[frame, :n] = box_convert(own.cxcywh, "cxcywh", "xyxy").to(boxes) * size
        full[frame, :n] = own.scores.to(full)
        valid[frame, :n] = 1
    assigner = TaskAlignedAssigner(10, classes, alpha=0.5, beta=6.0, stride=strides)
    _, target_xyxy, alignment, foreground, index = assigner(
        scores, xyxy, centres, full.argmax(-1, keepdim=True), boxes, valid
    )
    wanted = full.gather(1, index[..., None].expand(-1, -1, classes))
    weight = alignment.amax(dim=-1, keepdim=True) * foreground[..., None]
    return wanted * weight, target_xyxy


@contextmanager
def assigned_by(detection, scores: Tensor, xyxy: Tensor) -> Iterator[None]:
    """Ultralytics' detection criterion with labels assigned by other answers than the student's.

    ``scores`` (B, N, C) probabilities, ``xyxy`` (B, N, 4) pixels; for the time of one call.
    """
    criterion = getattr(detection, "one2many", detection)
    own = criterion.assigner
    criterion.assigner = lambda _scores, _xyxy, *rest, **more: own(scores, xyxy, *rest, **more)
    try:
        yield
    finally:
        criterion.assigner = own


class MaskedBCE(nn.Module):
    """BCEWithLogitsLoss(reduction="none") of (B, N, C) logits, times ``kept`` (B, N)."""

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        loss = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return loss * self.kept[..., None]


@contextmanager
def masked_negatives(detection, kept: Tensor) -> Iterator[None]:
    """Ultralytics' detection criterion (or both of YOLO26's) with its class loss masked.

    For the time of one call: what is copied into checkpoints is Ultralytics' own.
    """
    both = [getattr(detection, name, None) for name in ("one2many", "one2one")]
    criteria = [c for c in both if c is not None] or [detection]
    own = [c.bce for c in criteria]
    for criterion in criteria:
        criterion.bce = MaskedBCE(kept)
    try:
        yield
    finally:
        for criterion, bce in zip(criteria, own, strict=True):
            criterion.bce = bce
