# SPDX-License-Identifier: AGPL-3.0-or-later
"""Soft labels: boxes with class probabilities, and frames in which not every class is labelled.

Both pass through Ultralytics' augmentation as rows of the label table, so every transform of the
labels moves them too. The class id of such a row is not a class: it says which predicted box the
row is, or that the row is a whole frame, and of which kind (`Coverage`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_convert

from drone_kd_training.data.names import DataError
from drone_kd_training.teachers import IGNORE_BAND

NMS_IOU = 0.6
# Key of a batch: a teacher's boxes on the unlabelled frames themselves, moved by augmentation,
# scores in the student's classes.
PSEUDO_LABELS = "pseudo_labels"
# Ids below it, of classes and rows, are exact in the float32 of a label table.
MAX_IDS = 2**24


@dataclass(frozen=True)
class Boxes:
    """Predicted boxes over a batch.

    Attributes:
        image: (n,) int64, index of the image in the batch.
        cxcywh: (n, 4), in [0, 1] of the input.
        scores: (n, C), in [0, 1].
    """

    image: Tensor
    cxcywh: Tensor
    scores: Tensor

    def __getitem__(self, chosen: Tensor) -> Boxes:
        """Return the boxes at an index or mask."""
        return Boxes(self.image[chosen], self.cxcywh[chosen], self.scores[chosen])

    def without_duplicates(self, min_score: float) -> Boxes:
        """Return the boxes with a score ≥ ``min_score`` after NMS per image and class."""
        best, class_id = self.scores.max(dim=-1)
        kept = (best >= min_score).nonzero().flatten()
        xyxy = box_convert(self.cxcywh[kept], "cxcywh", "xyxy")
        group = self.image[kept] * self.scores.shape[-1] + class_id[kept]
        return self[kept[batched_nms(xyxy.float(), best[kept].float(), group, NMS_IOU)]]


@dataclass
class Predictions:
    """Stored predictions of a teacher.

    Attributes:
        names: class names.
        found: stem of the image file, or its path -> boxes (n, 4), cxcywh, and scores (n, C) in
            [0, 1].
        pixels: whether the boxes are in pixels of the image, or in [0, 1] of its size.
    """

    names: tuple[str, ...]
    found: dict[str, tuple[np.ndarray, np.ndarray]]
    pixels: bool
    head: ClassVar[None] = None
    module: ClassVar[None] = None

    def __call__(self, images: Tensor, batch: dict) -> Boxes:
        """Return the predictions of the augmented frames (`split_batch`)."""
        return batch["predictions"]


@dataclass(frozen=True)
class Coverage:
    """Which classes labels and teachers cover in one kind of frame, each (C,) bool.

    A class that is ``labelled`` is learned from its labels. One that is only ``predicted`` (a
    teacher predicts it) is learned from pseudo-labels. One that is neither is masked: its objects
    are not background.
    """

    labelled: tuple[bool, ...]
    predicted: tuple[bool, ...]


@dataclass(frozen=True)
class Thresholds:
    """What a teacher's score means where a class has no labels, each (C,) by class.

    A box with a score ≥ ``high`` is a pseudo-label, one below ``low`` is background; between them
    it is ignored in the detection loss.
    """

    high: tuple[float, ...]
    low: tuple[float, ...]

    @classmethod
    def same(cls, classes: int, high: float = IGNORE_BAND[1], low: float = IGNORE_BAND[0]):
        """Return the same thresholds for a number of classes."""
        return cls((high,) * classes, (low,) * classes)


@dataclass(frozen=True)
class Areas:
    """Where the frames lie within the augmented images of a batch, and what covers them.

    ``image`` and ``cxcywh`` are those of `Boxes`; the others are (n, C) bool, as in `Coverage`.
    """

    image: Tensor
    cxcywh: Tensor
    labelled: Tensor
    predicted: Tensor

    @property
    def pseudo_labelled(self) -> Tensor:
        """(n, C) bool: the classes that are learned from pseudo-labels."""
        return self.predicted & ~self.labelled

    @property
    def partial(self) -> bool:
        """Whether a class is unlabelled somewhere."""
        return not bool(self.labelled.all())

    def at(self, values: Tensor, points: Tensor, images: int) -> Tensor:
        """Return ``values`` (n, C) of the frames at points of each image, 0 outside of them.

        ``points`` (N, 2) are in [0, 1] of the input. The result is (B, N, C) for B ``images``.
        """
        found = points.new_zeros(images, len(points), values.shape[-1])
        for image, box, value in zip(self.image.tolist(), self.cxcywh, values, strict=True):
            found[image][_inside(points, box)] = value.to(found)
        return found


def extend_labels(
    labels: list[dict],
    classes: int,
    kinds: list[Coverage] | None,
    kind_of: dict[str, int],
    predictions: Predictions | None = None,
) -> tuple[Tensor, int]:
    """Append the frame and the predictions to the rows of each label dictionary, in place.

    Args:
        labels: of a YOLODataset.
        classes: number of classes of the data.
        kinds: the kinds of frames, or None where every class is labelled in every frame.
        kind_of: im_file -> index into ``kinds``; labels of a class that is not labelled are
            dropped.
        predictions: boxes of a teacher.

    Returns:
        The scores (n, C) of all appended predictions, and the number of frames with some.

    Raises:
        DataError: more predictions than ids.
    """
    scores: list[np.ndarray] = []
    first_id = next_id = classes + len(kinds or [])
    for label in labels:
        rows = [(label["cls"], label["bboxes"])]
        if kinds is not None:
            kind = kind_of[label["im_file"]]
            labelled = np.array(kinds[kind].labelled)[label["cls"].astype(int).flatten()]
            rows = [
                (label["cls"][labelled], label["bboxes"][labelled]),
                (np.array([[classes + kind]]), np.array([[0.5, 0.5, 1.0, 1.0]])),
            ]
        if predictions is not None and (found := _predictions_of(label, predictions)):
            boxes, box_scores = found
            ids = next_id + np.arange(len(box_scores))
            rows.append((ids[:, None], boxes))
            scores.append(box_scores)
            next_id += len(box_scores)
        ids, boxes = (np.concatenate(column) for column in zip(*rows, strict=True))
        label["cls"] = ids.astype(np.float32).reshape(-1, 1)
        label["bboxes"] = boxes.astype(np.float32).reshape(-1, 4)
    if next_id > MAX_IDS:
        raise DataError(
            f"expected up to {MAX_IDS - first_id} predictions in the training frames, got "
            f"{next_id - first_id}; use fewer frames, or drop predictions with low scores"
        )
    table = np.concatenate(scores) if scores else np.zeros((0, classes), np.float32)
    return torch.from_numpy(table), len(scores)


def _predictions_of(label: dict, predictions: Predictions) -> tuple[np.ndarray, np.ndarray] | None:
    """Return boxes (n, 4), cxcywh in [0, 1], and scores (n, C) of one frame, or None."""
    stem = Path(label["im_file"]).stem
    # Tools that write COCO results turn "000123" into 123, and "000000" into 0.
    keys = (label["im_file"], stem, stem.lstrip("0") or "0")
    found = next((predictions.found[key] for key in keys if key in predictions.found), None)
    if found is None:
        return None
    boxes, scores = found
    height, width = label["shape"]
    size = np.array([width, height, width, height]) if predictions.pixels else 1.0
    return boxes / size, scores


def split_batch(batch: dict, classes: int, kinds: list[Coverage] | None, scores: Tensor) -> dict:
    """Return a batch without the rows that `extend_labels` appended.

    The batch gets ``predictions`` (`Boxes`) and, where there are kinds, ``areas`` (`Areas`).
    """
    row = batch["cls"].flatten().long()
    first = classes + len(kinds or [])
    predicted, area, labelled = row >= first, (row >= classes) & (row < first), row < classes
    image, boxes = batch["batch_idx"].long(), batch["bboxes"]
    box_scores = scores[(row[predicted] - first).to(scores.device)].to(boxes)
    found: dict[str, Boxes | Areas] = {
        "predictions": Boxes(image[predicted], boxes[predicted], box_scores)
    }
    if kinds is not None:
        kind = row[area] - classes
        table = torch.tensor([[k.labelled, k.predicted] for k in kinds], device=boxes.device)[kind]
        found["areas"] = Areas(image[area], boxes[area], table[:, 0], table[:, 1])
    labels = {key: batch[key][labelled] for key in ("cls", "bboxes", "batch_idx")}
    return {**batch, **labels, **found}


def add_pseudo_labels(batch: dict, boxes: Boxes, high: Sequence[float]) -> dict:
    """Add the confident predictions of unlabelled classes to the labels of a batch with ``areas``.

    The boxes are the teacher's after NMS, scores in the student's classes, as is the threshold
    ``high``.
    """
    confident = boxes.scores >= boxes.scores.new_tensor(high)
    confident &= _pseudo_labelled_at(boxes, batch["areas"])
    index, class_id = confident.nonzero(as_tuple=True)
    added = {"cls": class_id[:, None], "bboxes": boxes.cxcywh[index]}
    added["batch_idx"] = boxes.image[index]
    rows = {key: torch.cat([batch[key], value.to(batch[key])]) for key, value in added.items()}
    # Ultralytics' criterion expects the labels of an image in one stretch, image after image.
    order = rows["batch_idx"].argsort(stable=True)
    return {**batch, **{key: value[order] for key, value in rows.items()}}


def negatives_mask(batch: dict, boxes: Boxes, centers: Tensor, thresholds: Thresholds) -> Tensor:
    """Return where "no object of this class" is known: (B, N, C) of 1 and 0.

    That is where a class is labelled, or where a teacher predicts it and no prediction of the
    ignore band covers the anchor. It is 0 in the padding, and in frames of which augmentation left
    so little that it dropped their row. ``boxes`` are as in `add_pseudo_labels`; the ``centers``
    (N, 2) of the anchors are in [0, 1] of the input.
    """
    areas: Areas = batch["areas"]
    mask = areas.at(areas.labelled | areas.predicted, centers, len(batch["img"]))
    low, high = (boxes.scores.new_tensor(t) for t in (thresholds.low, thresholds.high))
    ignored = (boxes.scores >= low) & (boxes.scores < high) & _pseudo_labelled_at(boxes, areas)
    for index in ignored.any(dim=-1).nonzero().flatten().tolist():
        inside = _inside(centers, boxes.cxcywh[index])
        mask[boxes.image[index]][inside[:, None] & ignored[index]] = 0.0
    return mask


def distilled_classes(batch: dict, targets: Tensor, centers: Tensor) -> Tensor:
    """Return where the student is compared with the teacher: (B, N, C) of 1 and 0.

    That is where a teacher predicts the class. If labels cover the class too, only where the
    teacher sees an object: its misses are not background. ``targets`` (B, N, C) are the teacher's
    probabilities at the anchors, whose ``centers`` (N, 2) are in [0, 1] of the input.
    """
    areas, images = batch["areas"], len(batch["img"])
    teacher_only = areas.at(areas.pseudo_labelled, centers, images)
    both = areas.at(areas.predicted & areas.labelled, centers, images)
    return torch.maximum(teacher_only, both * (targets > 0))


def _inside(points: Tensor, box: Tensor) -> Tensor:
    """Return which points (N, 2) lie in a cxcywh box, (N,) bool."""
    return ((points - box[:2]).abs() <= box[2:] / 2).all(dim=-1)


def _pseudo_labelled_at(boxes: Boxes, areas: Areas) -> Tensor:
    """Return the classes that are pseudo-labelled at the center of each box, (n, C) bool."""
    same = boxes.image[:, None] == areas.image[None]
    distance = (boxes.cxcywh[:, None, :2] - areas.cxcywh[None, :, :2]).abs()
    inside = same & (distance <= areas.cxcywh[None, :, 2:] / 2).all(dim=-1)
    return (inside[..., None] & areas.pseudo_labelled[None]).any(dim=1)
