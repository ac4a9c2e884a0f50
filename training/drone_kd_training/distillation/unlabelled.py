# SPDX-License-Identifier: AGPL-3.0-or-later
"""Unlabelled flights of a run: their frames, the thresholds of pseudo-labels, what to expect."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils import LOGGER

from drone_kd.core.thresholds import parse_thresholds
from drone_kd.files import write_text
from drone_kd.media.image_files import SourceError, read_image
from drone_kd.parsing import read_json
from drone_kd.text import one_line
from drone_kd_training.data.crops import MAX_SIDE, MIN_SIDE
from drone_kd_training.data.dataset import DataSet, image_paths
from drone_kd_training.data.flight_frames import write_flight_frames
from drone_kd_training.data.names import DataError
from drone_kd_training.distillation import heads
from drone_kd_training.distillation.config import AUTO, FRAME, Config
from drone_kd_training.distillation.train_data import (
    FRAME_BOXES,
    FRAMES,
    TRAIN_LIST,
    add_unlabelled,
    write_pseudo_labels,
    write_thresholds,
)
from drone_kd_training.models.checkpoints import match_classes
from drone_kd_training.teachers.pseudo_labels import choose_thresholds, expect
from drone_kd_training.teachers.soft_labels import Boxes, Predictions, Thresholds
from drone_kd_training.teachers.teacher_scores import MAX_UNLABELLED, Predict, score_teacher
from drone_kd_training.teachers.teachers import Teacher

# Below the folder of a run: the frames of its flights, what was expected of them, and the
# validation set of a run without labels.
FLIGHTS, EXPECTATION, NO_VAL = "flights", "expectation.json", "val.txt"
_EXPECTATION_BYTES = 10_000_000
# Labelled frames whose size is looked at, about.
_SIZES = 10


def add_flights(config: Config, data: DataSet, teacher: Teacher, output: Path) -> DataSet:
    """Return a run's data with the frames of its flights; print what they will teach.

    Writes the frames that need it, the thresholds and the expectation below ``output``, the
    folder of the run. Without labelled data only the flights teach.

    Raises:
        DataError, SourceError: a flight cannot be used, shows the validation images, or the
            teacher finds nothing in it.
    """
    labelled = image_paths(data.train) if config.data else []
    judged = image_paths(data.val) if config.data and not config.same_flights else []
    tile = _tile(config, labelled)
    flights = [str(Path(f).resolve()) if Path(f).exists() else f for f in config.unlabelled]
    found = write_flight_frames(flights, output / FLIGHTS, tile, config.max_frames, judged)
    frames = _without_labelled([frame.path for frame in found], labelled)
    match = match_classes(data.names, teacher.names)
    imgsz = config.teacher_imgsz
    once = _predicts_once(config, teacher)
    most = len(frames) if once else MAX_UNLABELLED
    predict = _predictor(teacher, imgsz)
    scores = score_teacher(predict, match, labelled, frames, imgsz, most=most)
    thresholds = _given(config.pseudo_threshold, data.names, choose_thresholds(scores))
    expectation = expect(scores, thresholds)
    LOGGER.info(expectation.table())
    for line in expectation.warnings:
        LOGGER.warning(line)
    write_thresholds(output / FRAMES, thresholds)
    if once:
        write_pseudo_labels(output / FRAMES, scores.boxes, min(thresholds.low))
    write_text(output / EXPECTATION, json.dumps(expectation.as_dict(), indent=1))
    add_unlabelled(data, labelled, frames, match, output, config.labelled_share)
    if not config.data:  # Ultralytics needs a validation set, even if it is not used
        write_text(output / NO_VAL, f"{frames[0]}\n")
    return continue_with_flights(config, data, teacher, output)


def continue_with_flights(
    config: Config, data: DataSet, teacher: Teacher | None, output: Path
) -> DataSet:
    """Return a run's data with the frames that `add_flights` listed.

    Raises:
        DataError: the teacher's boxes on the frames are missing, which it predicted once.
    """
    path = output / FRAMES / FRAME_BOXES
    if _predicts_once(config, teacher) and not path.is_file():
        raise DataError(
            f"{one_line(path)}: expected boxes on unlabelled frames, got no file; start the run "
            "anew"
        )
    val = data.val if config.data else output / NO_VAL
    return replace(data, train=output / TRAIN_LIST, val=val)


def _predicts_once(config: Config, teacher: Teacher | None) -> bool:
    """Return whether the frames are predicted before training; stored predictions already are."""
    return config.pseudo_labels == FRAME and not isinstance(teacher, Predictions)


def _without_labelled(frames: list[Path], labelled: list[Path]) -> list[Path]:
    """Return the frames that are no labelled training images; DataError if all are."""
    known = {path.resolve() for path in labelled}
    kept = [path for path in frames if path.resolve() not in known]
    if not kept:
        raise DataError(
            "expected flights with other frames than the labelled ones, got the training images "
            "alone; add frames without labels, or leave --unlabelled out"
        )
    if dropped := len(frames) - len(kept):
        LOGGER.info(f"Unlabelled: {dropped} labelled training images in the flights are left out")
    return kept


def read_expectation(output: Path) -> dict[str, Any] | None:
    """Return what `add_flights` expected in the folder of a run, None without flights."""
    path = output / EXPECTATION
    if not path.is_file():
        return None
    content = read_json(path, _EXPECTATION_BYTES)
    if not isinstance(content, dict):
        raise ValueError(f"{one_line(path)}: expected what a run learns from; delete it")
    return content


def check_threshold(text: str, names: Sequence[str]) -> None:
    """Raise ValueError if a ``pseudo_threshold`` is none for these classes."""
    _given(text, names, Thresholds.same(len(names)))


def _given(text: str, names: Sequence[str], chosen: Thresholds) -> Thresholds:
    """Return the thresholds with those that a user gives; the ignore region keeps below them."""
    if text == AUTO:
        return chosen
    values = dict(zip(names, chosen.high, strict=True))
    parts = text.split(",")
    try:
        common = [float(part) for part in parts if "=" not in part]
        given = parse_thresholds(part for part in parts if "=" in part)
    except ValueError:
        common, given = [], {"": 0.0}
    if (
        len(common) > 1
        or not set(given) <= set(names)
        or not all(0 < score < 1 for score in (*common, *given.values()))
    ):
        raise ValueError(
            f"pseudo_threshold must be auto, a score above 0 and below 1, or such as "
            f"{one_line(names[0], 40)}=0.4, got {one_line(text, 60)}"
        )
    values |= {name: score for score in common for name in names} | given
    high = tuple(values[name] for name in names)
    low = tuple(min(edge, limit) for edge, limit in zip(chosen.low, high, strict=True))
    return Thresholds(high, low)


def _tile(config: Config, labelled: list[Path]) -> int:
    """Return the side of the windows of larger frames; 0: whole frames.

    Objects have the same size then in both kinds of frames: the windows are as large as the
    labelled frames; without any, as the student's input.
    """
    if config.tile == "off":
        return 0
    if config.tile != AUTO:
        return int(config.tile)
    step = max(1, len(labelled) // _SIZES)
    sides = sorted(filter(None, map(_side, labelled[::step])))
    return min(max(sides[len(sides) // 2], MIN_SIDE), MAX_SIDE) if sides else config.imgsz


def _side(path: Path) -> int:
    """Return the longer side of an image in pixels, 0 if it cannot be read: training skips it."""
    try:
        return max(read_image(path).shape[:2])
    except SourceError:
        return 0


def _predictor(teacher: Teacher, imgsz: int) -> Predict | Predictions:
    """Return a function of images on the CPU that gives a teacher's boxes."""
    if isinstance(teacher, Predictions):
        return teacher

    def predict(images: Tensor) -> Boxes:
        with torch.no_grad():
            found = teacher(images, {})
        if isinstance(found, Boxes):
            return found
        assert teacher.head is not None  # raw predictions come from one
        return heads.confident_boxes(heads.in_float32(found), teacher.head, imgsz)

    return predict


def check_flights(config: Config) -> None:
    """Refuse flights that do not exist, before anything is written; DataError."""
    for flight in config.unlabelled:
        if "://" not in flight and not os.path.exists(flight):  # noqa: PTH110  Path.exists() raises for names that are too long
            raise DataError(f"{one_line(flight)}: no such folder, list, video or bag")
