# SPDX-License-Identifier: AGPL-3.0-or-later
"""The data set that mining writes, in Ultralytics' layout with what the teacher is unsure of.

data.yaml               the flying model's classes
images/{train,val}/     chosen frames; val: of held-out time blocks, for the guard alone
labels/{train,val}/     'class cx cy w h': what the teacher is sure of, or a person's corrections
answers/                'class cx cy w h confidence': all that the teacher answered
corrected.txt           names of frames whose labels are a person's
mined.csv               why each frame was chosen
contact-sheet.jpg       all of that to look at
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
from drone_kd.files import write_whole
from drone_kd.visualization import draw_text
from drone_kd_training.mining.stages import Labelled
from drone_kd_training.teachers.fusion import bend
from drone_kd_training.teachers.predict import answer_lines
from drone_kd_training.teachers.soft_labels import IGNORE_BAND
from drone_kd_training.teachers.teachers import CLASSES_FILE

SPLITS = ("train", "val")
COLUMNS = (
    "name", "split", "flight", "topic", "stamp_s", "scene", "reason",
    "disagreement", "uncertainty", "novelty", "sure", "unsure",
)  # fmt: skip
# Of the contact sheet: frames, at most, and their size in pixels.
_SHEET_FRAMES, _SHEET_COLUMNS, _TILE = 60, 6, (320, 240)
_SURE, _UNSURE = (90, 230, 60), (0, 160, 255)


def make_folders(root: Path) -> None:
    """Make the empty folders of a data set; those that are there stay."""
    for kind in ("images", "labels"):
        for split in SPLITS:
            (root / kind / split).mkdir(parents=True, exist_ok=True)
    (root / "answers").mkdir(exist_ok=True)


def write_frame(
    root: Path, row: dict[str, Any], labelled: Labelled, sure: float = IGNORE_BAND[1]
) -> None:
    """Write a frame, its labels and its answers; the labels last, which say that it is done.

    Scores are bent, so that ``sure`` stands at the upper edge of the ignore band.
    """
    name, split = row["name"], row["split"]
    scores = bend(labelled.answers.scores, sure).astype(np.float32)
    lines = answer_lines(replace(labelled.answers, scores=scores), *labelled.size)
    sure = [line for line in lines.splitlines() if float(line.split()[5]) > IGNORE_BAND[1]]
    labels = "".join(" ".join(line.split()[:5]) + "\n" for line in sure)
    write_whole(root / "images" / split / f"{name}.jpg", labelled.jpeg)
    write_whole(root / "answers" / f"{name}.txt", lines.encode())
    write_whole(root / "labels" / split / f"{name}.txt", labels.encode())


def is_written(root: Path, row: dict[str, Any]) -> bool:
    """Whether `write_frame` has come to its end for a row."""
    return (root / "labels" / row["split"] / f"{row['name']}.txt").exists()


def read_answers(root: Path, name: str) -> np.ndarray:
    """The answers of a frame: (n, 6) of class, centre and size in [0, 1], confidence."""
    text = (root / "answers" / f"{name}.txt").read_text(encoding="utf-8")
    return np.array([line.split() for line in text.splitlines()], np.float64).reshape(-1, 6)


def finish(root: Path, rows: list[dict[str, Any]], names: tuple[str, ...]) -> int:
    """Write what goes with the frames; returns how many sure boxes there are in all.

    Raises:
        OSError: it cannot be written.
    """
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    total = 0
    for row in rows:
        scores = read_answers(root, row["name"])[:, 5]
        sure = int((scores > IGNORE_BAND[1]).sum())
        unsure = int(((scores >= IGNORE_BAND[0]) & (scores <= IGNORE_BAND[1])).sum())
        figures = {key: f"{row[key]:.6f}" for key in ("disagreement", "uncertainty", "novelty")}
        stamp = f"{row['stamp_s']:.6f}"
        writer.writerow({**row, **figures, "stamp_s": stamp, "sure": sure, "unsure": unsure})
        total += sure
    write_whole(root / "mined.csv", table.getvalue().encode())
    write_whole(root / "answers" / CLASSES_FILE, "".join(f"{n}\n" for n in names).encode())
    content = {"path": ".", "train": "images/train"}
    if any(row["split"] == "val" for row in rows):
        content["val"] = "images/val"
    content["names"] = dict(enumerate(names))
    write_whole(root / "contact-sheet.jpg", _sheet(root, rows))
    write_whole(root / "data.yaml", yaml.safe_dump(content, sort_keys=False).encode())
    return total


def _sheet(root: Path, rows: list[dict[str, Any]]) -> bytes:
    shown = rows[:: math.ceil(len(rows) / _SHEET_FRAMES)]
    tiles = list(_tiles(root, shown))
    blank = np.zeros_like(tiles[0])
    tiles += [blank] * (-len(tiles) % _SHEET_COLUMNS)
    lines = [
        np.hstack(tiles[i : i + _SHEET_COLUMNS]) for i in range(0, len(tiles), _SHEET_COLUMNS)
    ]
    return cv2.imencode(".jpg", np.vstack(lines))[1].tobytes()


def _tiles(root: Path, rows: list[dict[str, Any]]) -> Iterator[np.ndarray]:
    """Frames with the teacher's sure boxes in green, what it is unsure of in orange."""
    for row in rows:
        image = cv2.imread(str(root / "images" / row["split"] / f"{row['name']}.jpg"))
        tile, (scale, left, top) = letterbox(image, *_TILE)
        size = np.array([image.shape[1], image.shape[0]]) * scale
        for _, x, y, w, h, score in read_answers(root, row["name"]):
            if score < IGNORE_BAND[0]:
                continue
            corners = [
                np.rint((np.array([x, y]) + side * np.array([w, h]) / 2) * size + [left, top])
                for side in (-1, 1)
            ]
            colour = _SURE if score > IGNORE_BAND[1] else _UNSURE
            cv2.rectangle(tile, *(c.astype(int).tolist() for c in corners), colour, 1)
        draw_text(tile, f"{row['reason']}, scene {row['scene']} ({row['split']})")
        yield tile
