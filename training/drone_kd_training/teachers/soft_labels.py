# SPDX-License-Identifier: AGPL-3.0-or-later
"""Soft labels: boxes with class probabilities, and frames in which not every class is labelled.

Both travel through Ultralytics' augmentation as rows of the label table, so that whatever moves a
label moves them: a row's class number is then no class but says which answer it is, or that its
box is a whole frame, and of which kind (`Coverage`).
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

from drone_kd_training.teachers import IGNORE_BAND

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


@dataclass(frozen=True)
class Coverage:
    """Who speaks for which classes in one kind of frame: ``labelled``, ``answered`` (C,) bool.

    A class that labels cover is learnt from them. One that a teacher alone answers for is learnt
    from what it is sure of. One that neither covers teaches nothing: its objects are no
    background.
    """

    labelled: tuple[bool, ...]
    answered: tuple[bool, ...]


@dataclass(frozen=True)
class Areas:
    """Frames within the pictures of a batch: ``frame`` (n,) index of the picture, ``cxcywh``
    (n, 4) in [0, 1] of the input, ``labelled`` and ``answered`` (n, C) bool.
    """

    frame: Tensor
    cxcywh: Tensor
    labelled: Tensor
    answered: Tensor

    @property
    def open(self) -> Tensor:
        """(n, C) bool: the classes that are learnt from a teacher's sure answers."""
        return self.answered & ~self.labelled

    @property
    def partial(self) -> bool:
        """Whether there is a class that is not labelled somewhere."""
        return not bool(self.labelled.all())

    def over(self, values: Tensor, points: Tensor, pictures: int) -> Tensor:
        """(B, N, C): ``values`` (n, C) at the points (N, 2) of each picture; 0 outside of every
        frame.
        """
        found = points.new_zeros(pictures, len(points), values.shape[-1])
        for frame, box, value in zip(self.frame.tolist(), self.cxcywh, values, strict=True):
            found[frame][_within(points, box)] = value.to(found)
        return found


def extend_labels(
    labels: list[dict],
    classes: int,
    kinds: list[Coverage] | None,
    kind_of: dict[str, int],
    predictions=None,
) -> tuple[Tensor, int]:
    """Append rows to Ultralytics' label dictionaries, in place.

    Args:
        labels: of a YOLODataset.
        classes: number of classes of the data.
        kinds: the kinds of frames, or None where every class is labelled in every frame.
        kind_of: im_file -> index into ``kinds``; labels of a class that is not labelled are
            dropped.
        predictions: a `teachers.teachers.Predictions`, or None.

    Returns:
        The scores (n, C) of all rows that are answers, and the number of frames that have some.
    """
    scores: list[np.ndarray] = []
    first = classes + len(kinds or [])
    count = frames = 0
    for label in labels:
        own = np.ones(len(label["cls"]), bool)
        rows = []
        if kinds is not None:
            kind = kind_of[label["im_file"]]
            own = np.array(kinds[kind].labelled)[label["cls"].astype(int).flatten()]
            rows.append((np.array([[classes + kind]]), np.array([[0.5, 0.5, 1.0, 1.0]])))
        rows.insert(0, (label["cls"][own], label["bboxes"][own]))
        stem = Path(label["im_file"]).stem
        answer = None
        if predictions is not None:
            # Tools that write COCO results turn "000123" into 123.
            answer = predictions.found.get(stem) or predictions.found.get(stem.lstrip("0"))
        if answer is not None:
            boxes, own_scores = answer
            height, width = label["shape"]
            size = np.array([width, height, width, height]) if predictions.pixels else 1.0
            ids = first + count + np.arange(len(own_scores))
            rows.append((ids[:, None], boxes / size))
            scores.append(own_scores)
            count += len(own_scores)
            frames += 1
        label["cls"] = np.concatenate([r[0] for r in rows]).astype(np.float32).reshape(-1, 1)
        label["bboxes"] = np.concatenate([r[1] for r in rows]).astype(np.float32).reshape(-1, 4)
    table = np.concatenate(scores) if scores else np.zeros((0, classes), np.float32)
    return torch.from_numpy(table), frames


def split_batch(batch: dict, classes: int, kinds: list[Coverage] | None, scores: Tensor) -> dict:
    """Take the rows that `extend_labels` appended out of a batch again.

    Adds ``answers`` (`Boxes`) and, where there are kinds, ``areas`` (`Areas`).
    """
    row = batch["cls"].flatten().long()
    first = classes + len(kinds or [])
    answer, area = row >= first, (row >= classes) & (row < first)
    frame, boxes = batch["batch_idx"].long(), batch["bboxes"]
    found = {"answers": Boxes(frame[answer], boxes[answer], scores.to(boxes)[row[answer] - first])}
    if kinds is not None:
        kind = row[area] - classes
        table = torch.tensor([[k.labelled, k.answered] for k in kinds], device=boxes.device)[kind]
        found["areas"] = Areas(frame[area], boxes[area], table[:, 0], table[:, 1])
    true = row < classes
    labels = {key: batch[key][true] for key in ("cls", "bboxes", "batch_idx")}
    return {**batch, **labels, **found}


def add_sure_answers(batch: dict, answers: Boxes) -> dict:
    """Labels for what the teacher is sure of, of the classes that are open where it lies: a batch
    with them.

    ``answers``: without duplicates, scores in the student's classes.
    """
    sure = (answers.scores > IGNORE_BAND[1]) & _open(answers, batch["areas"])
    index, class_id = sure.nonzero(as_tuple=True)
    rows = {
        "cls": class_id[:, None],
        "bboxes": answers.cxcywh[index],
        "batch_idx": answers.frame[index],
    }
    rows = {key: torch.cat([batch[key], value.to(batch[key])]) for key, value in rows.items()}
    # Ultralytics' criterion takes them for granted picture by picture.
    order = rows["batch_idx"].argsort(stable=True)
    return {**batch, **{key: value[order] for key, value in rows.items()}}


def negatives_kept(batch: dict, answers: Boxes, centres: Tensor) -> Tensor:
    """Which anchors may be told that there is no object of a class: (B, N, C) of 1 and 0.

    Where a class is labelled or a teacher answers for it, but for the anchors inside an answer of
    the ignore band, if it is not labelled. (Of a frame of which next to nothing is left,
    augmentation drops the row: there, and in the padding, nothing is told.)

    ``centres``: (N, 2) of the anchors, in [0, 1] of the input.
    """
    areas: Areas = batch["areas"]
    kept = areas.over(areas.labelled | areas.answered, centres, len(batch["img"]))
    low, high = IGNORE_BAND
    band = (answers.scores >= low) & (answers.scores <= high) & _open(answers, areas)
    for index in band.any(dim=-1).nonzero().flatten().tolist():
        inside = _within(centres, answers.cxcywh[index])
        kept[answers.frame[index]][inside[:, None] & band[index]] = 0.0
    return kept


def answers_count(batch: dict, wanted: Tensor, centres: Tensor) -> Tensor:
    """Where the distance from the answers ``wanted`` (B, N, C) counts: (B, N, C) of 1 and 0.

    Where a teacher answers for the class; and if labels cover it, too, only where it sees an
    object: what it misses, the labels know better.
    """
    areas: Areas = batch["areas"]
    pictures = len(batch["img"])
    alone = areas.over(areas.open, centres, pictures)
    both = areas.over(areas.answered & areas.labelled, centres, pictures)
    return torch.maximum(alone, both * (wanted > 0))


def _within(points: Tensor, box: Tensor) -> Tensor:
    """(N,) bool: which points (N, 2) lie in a box (centre and size)."""
    return ((points - box[:2]).abs() <= box[2:] / 2).all(dim=-1)


def _open(answers: Boxes, areas: Areas) -> Tensor:
    """(n, C) bool: the classes that are open where the centre of each answer lies."""
    same = answers.frame[:, None] == areas.frame[None]
    distance = (answers.cxcywh[:, None, :2] - areas.cxcywh[None, :, :2]).abs()
    inside = same & (distance <= areas.cxcywh[None, :, 2:] / 2).all(dim=-1)
    return (inside[..., None] & areas.open[None]).any(dim=1)


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
    """BCEWithLogitsLoss(reduction="none") of (B, N, C) logits, times ``kept`` (B, N, C).

    At an anchor that holds an object every class counts: what is a car is no person.
    """

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        loss = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return loss * self.kept.maximum((target.amax(dim=-1, keepdim=True) > 0).to(loss))


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
