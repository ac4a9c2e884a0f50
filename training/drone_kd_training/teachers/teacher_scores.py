# SPDX-License-Identifier: AGPL-3.0-or-later
"""Scores of a teacher on labelled and unlabelled frames, compared with the labels.

The teacher runs once over both kinds of frames, at the input size at which it teaches. Its boxes
are those that the criterion gets from it: after NMS, in the student's classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert

from drone_kd.core.boxes import iou, unletterbox
from drone_kd.core.preprocess import letterbox
from drone_kd.media.image_files import SourceError, read_image
from drone_kd.progress import track
from drone_kd.text import one_line
from drone_kd_training.data.dataset import label_path, read_labels
from drone_kd_training.data.names import DataError
from drone_kd_training.models.checkpoints import ClassMatch
from drone_kd_training.teachers.fusion import MATCH_IOU
from drone_kd_training.teachers.soft_labels import Boxes, Predictions, extend_labels
from drone_kd_training.teachers.teachers import LOWEST_SCORE

LOGGER = logging.getLogger(__name__)

# Frames that are read, evenly spread over all.
MAX_LABELLED, MAX_UNLABELLED = 500, 200
# Lowest threshold of a pseudo-label, see `pseudo_labels`: a teacher below it everywhere has none.
LOWEST_THRESHOLD = 0.1

Predict = Callable[[Tensor], Boxes]


@dataclass(frozen=True)
class Scores:
    """The teacher's scores of one class on the frames that were read, after NMS.

    Attributes:
        labels: labels of the class, and ``frames`` with one.
        labelled: float32 (n,), its boxes on labelled frames, in descending order.
        right: (n,) bool, whether the box matches a label.
        unlabelled: float32 (m,), its boxes on unlabelled frames.
    """

    labels: int
    frames: int
    labelled: np.ndarray
    right: np.ndarray
    unlabelled: np.ndarray

    def counts(self, threshold: float) -> tuple[int, int]:
        """Return the true positives and all boxes on labelled frames at a threshold."""
        above = self.labelled >= threshold
        return int((above & self.right).sum()), int(above.sum())


@dataclass(frozen=True)
class TeacherScores:
    """Scores of a teacher: one `Scores` per student class, None where it does not know the class.

    ``labelled`` and ``unlabelled``: (frames that were read, all frames). ``boxes``: of each
    unlabelled frame that was read float32 (n, 4 + C), xyxy in [0, 1] and the scores.
    """

    names: tuple[str, ...]
    scores: tuple[Scores | None, ...]
    labelled: tuple[int, int]
    unlabelled: tuple[int, int]
    boxes: Mapping[Path, np.ndarray] = field(default_factory=dict)


def score_teacher(
    teacher: Predict | Predictions,
    match: ClassMatch,
    labelled: Sequence[Path],
    unlabelled: Sequence[Path],
    imgsz: int,
    batch: int = 8,
    most: int = MAX_UNLABELLED,
) -> TeacherScores:
    """Run a teacher over labelled and unlabelled frames, and compare it with the labels.

    Frames that cannot be read are left out, with a warning in the log.

    Args:
        teacher: stored predictions, which are looked up by the image's stem; or a function that
            takes images, float32 (B, 3, S, S) RGB in [0, 1] on the CPU, and returns boxes with
            scores in the teacher's classes.
        match: common classes of student and teacher.
        labelled: images with YOLO label files; empty: no labels at all.
        imgsz: side S of the square input in pixels.
        most: unlabelled frames that are read, evenly spread over all.

    Raises:
        DataError: no frame of a kind can be read, or the teacher finds nothing in the unlabelled
            frames.
    """
    classes = len(match.student_names)
    labelled, unlabelled = (list(dict.fromkeys(x)) for x in (labelled, unlabelled))
    labels = _labels(_spread(labelled, MAX_LABELLED), classes)
    chosen = _spread(unlabelled, most)
    on_labelled = dict(_predict(teacher, match, list(labels), imgsz, batch))
    on_unlabelled = dict(_predict(teacher, match, chosen, imgsz, batch))
    if not on_unlabelled:
        raise _unreadable("unlabelled", unlabelled)
    if labelled and not on_labelled:
        raise _unreadable("labelled", labelled)
    scores = [_class_scores(i, labels, on_labelled, on_unlabelled) for i in range(classes)]
    known = {i for i, _ in match.pairs}
    if not any((scores[i].unlabelled >= LOWEST_THRESHOLD).any() for i in known):
        names = ", ".join(match.student_names[i] for i in sorted(known))
        raise DataError(
            f"the teacher finds nothing in {len(on_unlabelled)} unlabelled frames: expected "
            f"{one_line(names, 80)} with a score ≥ {LOWEST_THRESHOLD:g}; "
            "check classes, imgsz, tile"
        )
    return TeacherScores(
        match.student_names,
        tuple(s if i in known else None for i, s in enumerate(scores)),
        (len(on_labelled), len(labelled)),
        (len(on_unlabelled), len(unlabelled)),
        on_unlabelled,
    )


def _unreadable(kind: str, frames: list[Path]) -> DataError:
    return DataError(
        f"expected {kind} frames, got none of {len(frames)} that can be read; the log names the "
        "reason for each"
    )


def _spread(frames: Sequence[Path], limit: int) -> list[Path]:
    """Return up to ``limit`` frames, evenly spread."""
    count = min(len(frames), limit)
    return [frames[i * len(frames) // count] for i in range(count)]


def _labels(images: Sequence[Path], classes: int) -> dict[Path, np.ndarray]:
    """Return the label rows of the images whose label files training accepts."""
    found = {}
    for path in images:
        try:
            found[path] = read_labels(label_path(path), classes)
        except DataError as error:
            LOGGER.warning("ignored %s: %s", one_line(path), error)
    return found


def _predict(
    teacher: Predict | Predictions,
    match: ClassMatch,
    images: Sequence[Path],
    imgsz: int,
    batch: int,
) -> Iterator[tuple[Path, np.ndarray]]:
    """Yield predictions per readable image, float32 (n, 4 + C): xyxy in [0, 1] of it, scores.

    The scores are in the student's classes, boxes are those after NMS, as in the criterion.
    """
    if isinstance(teacher, Predictions):
        for path in images:
            if not teacher.pixels:
                yield path, _stored(teacher, match, path, (1, 1))
            elif (image := _read(path)) is not None:
                yield path, _stored(teacher, match, path, image.shape[:2])
        return
    parts = [images[i : i + batch] for i in range(0, len(images), batch)]
    for part in track(parts, "Predict with the teacher", "batch"):
        pixels = {path: image for path in part if (image := _read(path)) is not None}
        if pixels:
            yield from _run(teacher, match, pixels, imgsz)


def _read(path: Path) -> np.ndarray | None:
    try:
        return read_image(path)
    except SourceError as error:
        LOGGER.warning("ignored %s", one_line(error))
        return None


def _run(
    predict: Predict, match: ClassMatch, pixels: dict[Path, np.ndarray], imgsz: int
) -> Iterator[tuple[Path, np.ndarray]]:
    views, placements = zip(*(letterbox(i, imgsz, imgsz) for i in pixels.values()), strict=True)
    planes = np.ascontiguousarray(np.stack(views)[..., ::-1].transpose(0, 3, 1, 2))
    with torch.no_grad():
        boxes = _in_student_classes(predict(torch.from_numpy(planes).float() / 255), match)
    for number, (path, image) in enumerate(pixels.items()):
        height, width = image.shape[:2]
        table = _table(boxes[boxes.image == number])
        xyxy = unletterbox(table[:, :4] * imgsz, placements[number], width, height)
        table[:, :4] = xyxy / np.array([width, height] * 2, np.float32)
        yield path, table


def _stored(
    predictions: Predictions, match: ClassMatch, path: Path, shape: tuple[int, ...]
) -> np.ndarray:
    empty = {"cls": np.zeros((0, 1)), "bboxes": np.zeros((0, 4))}
    label = {"im_file": str(path), "shape": shape, **empty}
    scores, _ = extend_labels([label], len(predictions.names), None, {}, predictions)
    image = torch.zeros(len(scores), dtype=torch.int64)
    boxes = Boxes(image, torch.from_numpy(label["bboxes"]), scores)
    return _table(_in_student_classes(boxes, match))


def _in_student_classes(boxes: Boxes, match: ClassMatch) -> Boxes:
    """Return boxes with scores in the student's classes, after NMS, on the CPU."""
    ours, theirs = (list(column) for column in zip(*match.pairs, strict=True))
    scores = torch.zeros(len(boxes.image), len(match.student_names))
    scores[:, ours] = boxes.scores[:, theirs].cpu().float()
    cpu = Boxes(boxes.image.cpu(), boxes.cxcywh.cpu().float(), scores)
    return cpu.without_duplicates(LOWEST_SCORE)


def _table(boxes: Boxes) -> np.ndarray:
    xyxy = box_convert(boxes.cxcywh, "cxcywh", "xyxy")
    return torch.cat([xyxy, boxes.scores], dim=1).numpy()


def _class_scores(
    class_id: int,
    labels: dict[Path, np.ndarray],
    on_labelled: dict[Path, np.ndarray],
    on_unlabelled: dict[Path, np.ndarray],
) -> Scores:
    scores, right, counts = [np.zeros(0, np.float32)], [np.zeros(0, bool)], []
    for path, table in on_labelled.items():
        boxes = _of_class(table, class_id)
        truth = labels[path][labels[path][:, 0] == class_id, 1:].astype(np.float32)
        corners = np.hstack([truth[:, :2] - truth[:, 2:] / 2, truth[:, :2] + truth[:, 2:] / 2])
        scores.append(boxes[:, 4])
        right.append(_match(boxes[:, :4], corners))
        counts.append(len(truth))
    all_scores = np.concatenate(scores)
    order = np.argsort(-all_scores, kind="stable")
    unlabelled = [_of_class(table, class_id)[:, 4] for table in on_unlabelled.values()]
    return Scores(
        labels=sum(counts),
        frames=sum(count > 0 for count in counts),
        labelled=all_scores[order],
        right=np.concatenate(right)[order],
        unlabelled=np.concatenate([np.zeros(0, np.float32), *unlabelled]),
    )


def _of_class(table: np.ndarray, class_id: int) -> np.ndarray:
    """Return boxes and score, (n, 5), of one class in descending order of the score."""
    found = table[:, [0, 1, 2, 3, 4 + class_id]]
    found = found[found[:, 4] >= LOWEST_SCORE]
    return found[np.argsort(-found[:, 4], kind="stable")]


def _match(boxes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return which boxes match a label, (n,) bool; both xyxy, boxes by descending score.

    A box takes the free label with the largest IoU ≥ `MATCH_IOU`.
    """
    right = np.zeros(len(boxes), bool)
    if not len(labels):
        return right
    overlap = iou(boxes, labels)
    for index, row in enumerate(overlap):
        best = int(row.argmax())
        if row[best] >= MATCH_IOU:
            right[index] = True
            overlap[:, best] = 0
    return right
