# SPDX-License-Identifier: AGPL-3.0-or-later
"""What can teach: a detector that answers per anchor, one that answers with boxes, or a folder of
predictions.

Each has ``names``, ``head`` (the Detect head, or None), and is called with pictures and the batch
they came in. A detector with a Detect head returns its raw predictions (see
`training.criterion.raw_predictions`), so that everything about them can be compared; every other
teacher returns `Boxes`, from which class probabilities and boxes are learnt.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.models import UnusableModelError, class_names, load_model
from training.softlabels import Boxes

BOX_HEADS = ("RTDETRDecoder",)
# An answer below this is none: RT-DETR gives 300 boxes for every picture.
LOWEST_SCORE = 0.05


@dataclass
class Predictions:
    """Boxes of a teacher that is not at hand, by the stem of the picture's name.

    ``found``: stem -> boxes (n, 4), centre and size, and scores (n, C) in [0, 1]; the boxes are
    in ``pixels`` of the picture, or in [0, 1] of its size.
    """

    names: tuple[str, ...]
    found: dict[str, tuple[np.ndarray, np.ndarray]]
    pixels: bool
    head = None
    module = None

    def __call__(self, pictures: Tensor, batch: dict) -> Boxes:
        """The predictions that the augmented frames show (`softlabels.split_batch`)."""
        return batch["answers"]


class DetectTeacher:
    """A detector with a Detect head."""

    def __init__(self, model: nn.Module) -> None:
        self.names = class_names(model)
        self.head = model.model[-1]
        if not hasattr(self.head, "one2one_cv2"):  # fused, YOLO26 would lose its one-to-many head
            model = model.fuse(verbose=False)
        # Both together: a quarter off the teacher's time on a CPU.
        model = model.to(memory_format=torch.channels_last)
        self.module = model.eval().requires_grad_(False)

    def __call__(self, pictures: Tensor, batch: dict) -> dict[str, Tensor]:
        predictions = self.module(pictures.contiguous(memory_format=torch.channels_last))
        return predictions[1].get("one2many", predictions[1])


class BoxTeacher:
    """RT-DETR: a set of boxes with logits, none of them bound to an anchor."""

    head = None

    def __init__(self, model: nn.Module) -> None:
        self.module = model.eval().requires_grad_(False)
        self.names = class_names(model)

    def __call__(self, pictures: Tensor, batch: dict) -> Boxes:
        boxes, logits = self.module(pictures)[1][:2]  # (layers, B, 300, 4 | C), the last counts
        scores = logits[-1].sigmoid()
        frame, query = (scores.amax(dim=-1) >= LOWEST_SCORE).nonzero(as_tuple=True)
        return Boxes(frame, boxes[-1][frame, query], scores[frame, query])


def open_teacher(source: str, names: tuple[str, ...]):
    """Open a checkpoint, a folder of YOLO .txt with confidences, or a COCO results .json.

    Args:
        source: path or name of the teacher.
        names: the classes of the data set, which the numbers in a file of predictions mean.

    Raises:
        UnusableModelError: none of these.
    """
    path = Path(source)
    if path.is_dir():
        return _check(Predictions(names, _read_folder(path, len(names)), pixels=False), source)
    if path.suffix == ".json":
        return _check(Predictions(names, _read_coco(path, len(names)), pixels=True), source)
    model, _ = load_model(source, also=BOX_HEADS)
    head = type(model.model[-1]).__name__
    return BoxTeacher(model) if head in BOX_HEADS else DetectTeacher(model)


def _check(predictions: Predictions, source: str) -> Predictions:
    if not predictions.found:
        raise UnusableModelError(
            f"{source} holds no predictions: expected lines 'class x y w h confidence' in .txt "
            "files named like the pictures, or a COCO results .json"
        )
    return predictions


def _one_hot(class_ids: np.ndarray, scores: np.ndarray, classes: int, source: Path) -> np.ndarray:
    """(n, C) scores: the predicted class has its confidence, every other class 0."""
    class_ids = class_ids.astype(int)
    if len(class_ids) and not (class_ids.min() >= 0 and class_ids.max() < classes):
        raise UnusableModelError(
            f"{source}: class {class_ids.max()}, but the data has {classes} classes"
        )
    if len(scores) and not (scores.min() >= 0 and scores.max() <= 1):
        raise UnusableModelError(f"{source}: a confidence of {scores.max():g} is not in [0, 1]")
    full = np.zeros((len(class_ids), classes), np.float32)
    full[np.arange(len(class_ids)), class_ids] = scores
    return full


def _read_folder(folder: Path, classes: int) -> dict:
    found = {}
    for path in sorted(folder.rglob("*.txt")):
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line]
        try:
            rows = np.array(lines, np.float32).reshape(-1, 6)
        except ValueError:
            raise UnusableModelError(
                f"{path}: expected lines 'class x y w h confidence' (6 numbers)"
            ) from None
        found[path.stem] = rows[:, 1:5], _one_hot(rows[:, 0], rows[:, 5], classes, path)
    return found


def _read_coco(path: Path, classes: int) -> dict:
    """COCO results: image_id is the stem of the picture's name, category_id the data's class."""
    by_image: dict[str, list] = {}
    try:
        for e in json.loads(path.read_text(encoding="utf-8")):
            x, y, w, h = e["bbox"]
            row = (x + w / 2, y + h / 2, w, h, e["category_id"], e["score"])
            by_image.setdefault(str(e["image_id"]), []).append(row)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnusableModelError(
            f"{path} is not a COCO results file (a list of image_id, category_id, bbox and "
            f"score): {type(error).__name__} {error}"
        ) from error
    tables = {stem: np.array(rows, np.float32) for stem, rows in by_image.items()}
    return {
        stem: (table[:, :4], _one_hot(table[:, 4], table[:, 5], classes, path))
        for stem, table in tables.items()
    }
