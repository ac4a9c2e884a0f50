# SPDX-License-Identifier: AGPL-3.0-or-later
"""Teachers: a detector with a Detect head, one that predicts boxes, or a folder of predictions.

Each has ``names``, ``head`` (the Detect head, or None) and ``module`` (the network, or None), and
is called with images and the batch they came in. A detector with a Detect head returns its raw
predictions (`heads.raw_predictions`), so that the student can be compared anchor by anchor. Every
other teacher returns `Boxes`, from which class probabilities and boxes are learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel

from drone_kd.parsing import ParseError, read_json
from drone_kd.text import one_line
from drone_kd_training.data.dataset import MAX_LABEL_BYTES, read_text
from drone_kd_training.data.names import DataError, class_list
from drone_kd_training.models.checkpoints import (
    UnusableModelError,
    class_names,
    detect_head,
    load_model,
)
from drone_kd_training.teachers.soft_labels import Boxes, Predictions

BOX_HEADS = ("RTDETRDecoder",)
# Predictions below this are dropped: RT-DETR gives 300 boxes per image.
LOWEST_SCORE = 0.05
# Class list beside YOLO's .txt files, one name per line, as annotation tools write it.
CLASSES_FILE = "classes.txt"
# Limits of predictions that others made: bytes of a class list, boxes of an image, all boxes times
# classes, and the size of coordinates, in pixels or in shares of the image.
MAX_NAMES_BYTES, MAX_BOXES, MAX_SCORES, MAX_COORDINATE = 1_000_000, 10_000, 10**9, 1e6
# Of COCO results: some four million boxes.
MAX_RESULTS_BYTES = 400_000_000
# {boxes, scores, feats} of a Detect head.
RawPredictions = dict[str, Any]
# Context around a tile in pixels: a multiple of every stride.
TILE_MARGIN = 64


class DetectTeacher:
    """A detector with a Detect head; it predicts images larger than ``tile`` pixels in tiles."""

    def __init__(self, model: DetectionModel, tile: int | None = None) -> None:
        self.tile = tile
        self.names = class_names(model)
        self.head = detect_head(model)
        if not hasattr(self.head, "one2one_cv2"):  # fused, YOLO26 would lose its one-to-many head
            model = model.fuse(verbose=False)
        # Fused and channels-last, the teacher takes a quarter less time on a CPU.
        channels_last: nn.Module = cast(Any, model).to(memory_format=torch.channels_last)
        self.module = channels_last.eval().requires_grad_(False)

    def __call__(self, images: Tensor, batch: dict) -> RawPredictions:
        """Return the raw predictions for square images (B, 3, S, S)."""
        if self.tile is None or images.shape[-1] <= self.tile:
            return self._predict(images)
        return predict_in_tiles(self._predict, images, self.tile, self.head.stride.int().tolist())

    def _predict(self, images: Tensor) -> RawPredictions:
        predictions = self.module(images.contiguous(memory_format=torch.channels_last))
        return predictions[1].get("one2many", predictions[1])


def predict_in_tiles(
    predict: Callable[[Tensor], RawPredictions], images: Tensor, tile: int, strides: list[int]
) -> RawPredictions:
    """Return raw predictions for square images (B, C, S, S), merged from those for tiles.

    A tile of ``tile`` pixels is predicted with a margin that is cut off again, so that objects at
    its edge are seen whole.
    """
    side = images.shape[-1]
    spans = [
        (max(0, start - TILE_MARGIN), start, min(side, start + tile))
        for start in range(0, side, tile)
    ]
    rows: list[list[Tensor]] = []
    for y, top, bottom in spans:
        row: list[list[Tensor]] = []
        for x, left, right in spans:
            raw = predict(images[..., y : bottom + TILE_MARGIN, x : right + TILE_MARGIN])
            levels = []
            for maps, s in zip(_as_maps(raw), strides, strict=True):
                inside = maps[..., (top - y) // s : (bottom - y) // s, :]
                levels.append(inside[..., (left - x) // s : (right - x) // s])
            row.append(levels)
        rows.append([torch.cat(level, dim=-1) for level in zip(*row, strict=True)])
    others = raw["boxes"].shape[1], raw["scores"].shape[1]
    parts = []
    for level in zip(*rows, strict=True):
        maps = torch.cat(level, dim=-2)
        parts.append(maps.split([maps.shape[1] - sum(others), *others], dim=1))
    feats, boxes, scores = zip(*parts, strict=True)
    return {
        "feats": list(feats),
        "boxes": torch.cat([x.flatten(2) for x in boxes], dim=-1),
        "scores": torch.cat([x.flatten(2) for x in scores], dim=-1),
    }


def _as_maps(raw: RawPredictions) -> list[Tensor]:
    """Return features, boxes and scores of each level as the channels of one map."""
    counts = [f.shape[-2] * f.shape[-1] for f in raw["feats"]]
    parts = (raw[key].split(counts, dim=-1) for key in ("boxes", "scores"))
    return [
        torch.cat([feat, *(x.unflatten(-1, feat.shape[-2:]) for x in others)], dim=1)
        for feat, *others in zip(raw["feats"], *parts, strict=True)
    ]


class BoxTeacher:
    """RT-DETR: predicts a set of boxes with logits, not bound to anchors."""

    head: ClassVar[None] = None

    def __init__(self, model: DetectionModel) -> None:
        self.module: nn.Module = model.eval().requires_grad_(False)
        self.names = class_names(model)

    def __call__(self, images: Tensor, batch: dict) -> Boxes:
        """Return the boxes with a score ≥ ``LOWEST_SCORE`` in images (B, 3, S, S)."""
        # (decoder layers, B, 300, 4 | C): the last layer is the prediction.
        boxes, logits = self.module(images)[1][:2]
        scores = logits[-1].sigmoid()
        image, query = (scores.amax(dim=-1) >= LOWEST_SCORE).nonzero(as_tuple=True)
        return Boxes(image, boxes[-1][image, query], scores[image, query])


Teacher = Predictions | DetectTeacher | BoxTeacher


def open_teacher(source: str, names: tuple[str, ...], tile: int | None = None) -> Teacher:
    """Open a checkpoint, a folder of YOLO .txt with confidences, or a COCO results .json.

    Args:
        source: path or name of the teacher.
        names: the classes of the data set: class ids in files of predictions refer to them, unless
            a ``classes.txt`` in the folder lists others.
        tile: side in pixels of the tiles in which a detector predicts larger images; None: whole.

    Raises:
        UnusableModelError: none of these, or a number out of range.
    """
    if holds_predictions(Path(source)):
        return read_predictions(source, names)
    model, _ = load_model(source, also=BOX_HEADS)
    is_box_head = type(detect_head(model)).__name__ in BOX_HEADS
    return BoxTeacher(model) if is_box_head else DetectTeacher(model, tile)


def holds_predictions(weights: Path) -> bool:
    """Return whether a teacher is given by its predictions, not by a checkpoint."""
    return weights.is_dir() or weights.suffix == ".json"


def read_predictions(source: str, names: tuple[str, ...]) -> Predictions:
    """Read a folder of YOLO .txt with confidences, or a COCO results .json; see `open_teacher`."""
    path = Path(source)
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    scores = 0
    try:
        if (listed := path / CLASSES_FILE).is_file():
            names = _read_class_list(listed)
        for stem, table in (_read_folder if path.is_dir() else _read_coco)(path):
            scores += len(table) * len(names)
            if len(table) > MAX_BOXES or scores > MAX_SCORES:
                raise UnusableModelError(
                    f"{one_line(path)}: expected at most {MAX_BOXES} predictions for an image and "
                    f"{MAX_SCORES} scores in all (predictions times classes), got more"
                )
            found[stem] = _checked(path / stem if path.is_dir() else path, table, len(names))
    except (DataError, ParseError) as error:
        raise UnusableModelError(str(error)) from None
    if not found:
        raise UnusableModelError(
            f"{one_line(source)} holds no predictions: expected lines 'class x y w h confidence' "
            "in .txt files named like the images, or a COCO results .json"
        )
    return Predictions(names, found, pixels=not path.is_dir())


def _read_class_list(path: Path) -> tuple[str, ...]:
    """Return the class names of a file with one per line; none: its folder has no predictions."""
    lines = [line.strip() for line in read_text(path, MAX_NAMES_BYTES).splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return class_list(lines, path) if lines else ()


def _checked(where: Path, table: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (n, 4) and scores (n, C), the predicted class's and 0 for every other class.

    ``table``: float32 (n, 6): centre and size, class, confidence. Raises UnusableModelError for
    numbers out of their range.
    """
    shown = one_line(where)
    boxes, class_ids, scores = table[:, :4], table[:, 4], table[:, 5]
    if not (np.abs(boxes) <= MAX_COORDINATE).all() or not (boxes[:, 2:] >= 0).all():
        raise UnusableModelError(
            f"{shown}: expected boxes with a size ≥ 0 within {MAX_COORDINATE:g}, got others"
        )
    known = (class_ids >= 0) & (class_ids < classes)
    if not known.all():
        raise UnusableModelError(
            f"{shown}: expected classes 0 to {classes - 1}, got {class_ids[~known][0]:g}; list "
            f"the class names in {CLASSES_FILE} if they differ from the data's"
        )
    inside = (scores >= 0) & (scores <= 1)
    if not inside.all():
        raise UnusableModelError(
            f"{shown}: expected confidences in [0, 1], got {scores[~inside][0]:g}"
        )
    full = np.zeros((len(table), classes), np.float32)
    full[np.arange(len(table)), class_ids.astype(int)] = scores
    return boxes, full


def _read_folder(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield stem and rows (see `_checked`) of YOLO .txt files with confidences."""
    for path in sorted(p for p in folder.rglob("*.txt") if p.name != CLASSES_FILE):
        lines = [line.split() for line in read_text(path, MAX_LABEL_BYTES).splitlines() if line]
        try:
            with np.errstate(over="ignore"):
                rows = np.array(lines, np.float32).reshape(-1, 6)
        except ValueError:
            expected = "expected lines 'class x y w h confidence' (6 numbers)"
            raise UnusableModelError(f"{one_line(path)}: {expected}") from None
        yield path.stem, rows[:, [1, 2, 3, 4, 0, 5]]


def _read_coco(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield stem and rows (see `_checked`) of COCO results, in pixels.

    An image_id is the image file's stem, a category_id the class id.
    """
    content = read_json(path, MAX_RESULTS_BYTES)
    by_image: dict[str, list] = {}
    try:
        for e in content:
            x, y, w, h = map(float, e["bbox"])
            row = (x + w / 2, y + h / 2, w, h, float(e["category_id"]), float(e["score"]))
            by_image.setdefault(str(e["image_id"]), []).append(row)
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise UnusableModelError(
            f"{one_line(path)} is not a COCO results file (a list of image_id, category_id, bbox "
            f"and score): {type(error).__name__} {one_line(error)}"
        ) from None
    for stem, rows in by_image.items():
        with np.errstate(over="ignore"):
            yield stem, np.array(rows, np.float32)
