# SPDX-License-Identifier: AGPL-3.0-or-later
"""The data set that mining writes: Ultralytics' layout, with the teacher's predictions.

data.yaml               the deployed model's classes
images/{train,val}/     chosen frames; val: of held-out time blocks, for the guard only
labels/{train,val}/     'class cx cy w h': pseudo-labels, or a person's corrections
predictions/            'class cx cy w h confidence': all predictions of the teacher
corrected.txt           names of frames whose labels are a person's
mined.csv               why each frame was chosen
contact-sheet.jpg       thumbnails with pseudo-labels and ignore regions
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from drone_kd.core.preprocess import letterbox
from drone_kd.files import write_bytes, write_text
from drone_kd.media.image_files import read_image
from drone_kd.visualization import contact_sheet, draw_box, draw_text
from drone_kd_training.data.folders import real_folder
from drone_kd_training.mining.reasons import REASONS
from drone_kd_training.mining.stages import LabelledFrame
from drone_kd_training.teachers.fusion import rescale
from drone_kd_training.teachers.predict import prediction_lines
from drone_kd_training.teachers.soft_labels import IGNORE_BAND
from drone_kd_training.teachers.teachers import CLASSES_FILE

SPLITS = ("train", "val")
_MEASURES = [name for name in REASONS if name != "random"]
COLUMNS = (
    *("name", "split", "flight", "topic", "stamp_s", "scene", "reason"),
    *(*_MEASURES, "labels", "ignored"),
)
# The contact sheet: maximum number of frames, columns, size of a frame in pixels.
_SHEET_FRAMES, _SHEET_COLUMNS, _TILE = 60, 6, (320, 240)
_LABEL_COLOUR, _IGNORED_COLOUR = (90, 230, 60), (0, 160, 255)


def make_folders(root: Path) -> None:
    """Make the folders of a data set that do not exist yet; DataError: one is a link or a file."""
    for kind in ("images", "labels"):
        for split in SPLITS:
            real_folder(real_folder(root / kind) / split)
    real_folder(root / "predictions")


def write_frame(
    root: Path, row: dict[str, Any], labelled: LabelledFrame, confident: float = IGNORE_BAND[1]
) -> None:
    """Write a frame, its predictions and, last, its pseudo-labels.

    ``row``: see `selection.pick`. ``confident``: score above which a prediction is a pseudo-label.
    Scores are rescaled so that it becomes the upper edge of the ignore band. Raises OSError.
    """
    name, split = row["name"], row["split"]
    scores = rescale(labelled.predictions.scores, confident).astype(np.float32)
    lines = prediction_lines(replace(labelled.predictions, scores=scores), *labelled.size)
    rows = [line.split() for line in lines.splitlines()]
    labels = "".join(f"{' '.join(row[:5])}\n" for row in rows if float(row[5]) > IGNORE_BAND[1])
    write_bytes(root / "images" / split / f"{name}.jpg", labelled.jpeg)
    write_text(root / "predictions" / f"{name}.txt", lines)
    write_text(root / "labels" / split / f"{name}.txt", labels)


def is_written(root: Path, row: dict[str, Any]) -> bool:
    """Return whether `write_frame` has finished for a row."""
    return (root / "labels" / row["split"] / f"{row['name']}.txt").exists()


def finish(root: Path, rows: list[dict[str, Any]], names: tuple[str, ...]) -> int:
    """Write the files that describe the frames; return the number of pseudo-labels."""
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    total = 0
    for row in rows:
        scores = _read_predictions(root, row["name"])[:, 5]
        confident = int((scores > IGNORE_BAND[1]).sum())
        ignored = int(((scores >= IGNORE_BAND[0]) & (scores <= IGNORE_BAND[1])).sum())
        figures = {key: f"{row[key]:.6f}" for key in _MEASURES}
        counts = {"stamp_s": f"{row['stamp_s']:.6f}", "labels": confident, "ignored": ignored}
        writer.writerow({**row, **figures, **counts})
        total += confident
    write_text(root / "mined.csv", table.getvalue())
    write_text(root / "predictions" / CLASSES_FILE, "".join(f"{n}\n" for n in names))
    content: dict[str, Any] = {"path": ".", "train": "images/train"}
    if any(row["split"] == "val" for row in rows):
        content["val"] = "images/val"
    content["names"] = dict(enumerate(names))
    write_bytes(root / "contact-sheet.jpg", _sheet(root, rows))
    write_text(root / "data.yaml", yaml.safe_dump(content, sort_keys=False))
    return total


def _read_predictions(root: Path, name: str) -> np.ndarray:
    """Return a frame's predictions (n, 6): class, centre and size in [0, 1], confidence."""
    text = (root / "predictions" / f"{name}.txt").read_text(encoding="utf-8")
    return np.array([line.split() for line in text.splitlines()], np.float64).reshape(-1, 6)


def _sheet(root: Path, rows: list[dict[str, Any]]) -> bytes:
    tiles = list(_tiles(root, rows[:: math.ceil(len(rows) / _SHEET_FRAMES)]))
    sheet = contact_sheet(tiles, _SHEET_COLUMNS, _SHEET_COLUMNS * _TILE[0])
    return cv2.imencode(".jpg", sheet)[1].tobytes()


def _tiles(root: Path, rows: list[dict[str, Any]]) -> Iterator[np.ndarray]:
    """Yield thumbnails with pseudo-labels in green and predictions to ignore in orange."""
    for row in rows:
        path = root / "images" / row["split"] / f"{row['name']}.jpg"
        image = read_image(path)
        tile, (scale, left, top) = letterbox(image, *_TILE)
        size = np.array([image.shape[1], image.shape[0]]) * scale
        for _, x, y, w, h, score in _read_predictions(root, row["name"]):
            if score < IGNORE_BAND[0]:
                continue
            half = np.array([w, h]) / 2
            corners = [(np.array([x, y]) + side * half) * size + [left, top] for side in (-1, 1)]
            colour = _LABEL_COLOUR if score > IGNORE_BAND[1] else _IGNORED_COLOUR
            draw_box(tile, np.concatenate(corners), colour)
        draw_text(tile, f"{row['reason']}, scene {row['scene']} ({row['split']})")
        yield tile
