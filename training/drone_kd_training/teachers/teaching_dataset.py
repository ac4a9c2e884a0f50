# SPDX-License-Identifier: AGPL-3.0-or-later
"""The training set of a plan: images, labels and fused predictions of all its sources.

The folder that `write_frames` makes:

    images/train, labels/train   every image (a link, or a window of one), by source
    predictions/                 the fused predictions, as a folder of predictions (`--teacher`)
    val/SOURCE/                  images and labels of the validation splits, in our classes
    data.yaml, regions.json      the data set; which classes labels and teachers cover, by image
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml
from ultralytics.utils import LOGGER

from drone_kd.files import write_text
from drone_kd.media.image_files import SourceError, read_image
from drone_kd.parsing import ParseError, read_json
from drone_kd.progress import track
from drone_kd.text import one_line
from drone_kd_training.data.crops import Crops, boxes_inside, views
from drone_kd_training.data.dataset import (
    DataSet,
    Sample,
    centre_and_size,
    label_lines,
    read_sample,
    write_list,
)
from drone_kd_training.data.folders import empty_folder, write_image
from drone_kd_training.data.names import DataError
from drone_kd_training.teachers.fusion import count_right, fuse, translate
from drone_kd_training.teachers.prediction_cache import PredictionCache
from drone_kd_training.teachers.soft_labels import Coverage
from drone_kd_training.teachers.teachers import CLASSES_FILE
from drone_kd_training.teachers.teaching_plan import Plan, Source, Teacher

REGIONS = "regions.json"
# A window without labels shows an object if a prediction has at least this score.
OBJECT_SCORE = 0.3
# Precision is measured on up to this many labelled images of a source,
MEASURED_IMAGES = 100
# if they have at least this many labels of the class.
MEASURED_LABELS = 20
JPEG_QUALITY = 92
_REGIONS_BYTES = 400_000_000


@dataclass(frozen=True)
class Frames:
    """The files of a training set: data.yaml and the folder of the fused predictions.

    ``val`` has, by source, its data.yaml and the classes that its labels cover.
    """

    data: Path
    predictions: Path
    val: dict[str, tuple[Path, tuple[str, ...]]]


def write_frames(plan: Plan, folder: Path) -> Frames:
    """Run the teachers, fuse their predictions, and write the training set.

    Predictions are cached by image, beside ``folder`` if the plan's own cache is read-only. A
    complete folder is left as it is.

    Raises:
        DataError: an image that a teacher needs cannot be read, or a source has no usable image.
        OSError: a file cannot be written.
    """
    evaluated = [s for s in plan.sources if s.labelled and s.val]
    val = {s.name: (folder / "val" / s.name / "data.yaml", s.labelled) for s in evaluated}
    frames = Frames(folder / "data.yaml", folder / "predictions", val)
    if (folder / REGIONS).is_file():
        return frames
    cached = plan.predictions
    if not os.access(next(p for p in (cached, *cached.parents) if p.exists()), os.W_OK):
        cached = folder.parent / cached.name
        LOGGER.info(f"{one_line(plan.predictions)} is read-only: predictions go to {cached}")
    caches = {t.name: PredictionCache(t, cached, plan.names) for t in plan.teachers}
    for teacher in plan.teachers:
        caches[teacher.name].compute(
            [p for s in plan.sources if s.name in teacher.sources for p in s.train]
        )
    weights = measure_weights(plan, caches)
    empty_folder(folder)
    for part in ("images/train", "labels/train", "predictions"):
        (folder / part).mkdir(parents=True)
    write_text(frames.predictions / CLASSES_FILE, "".join(f"{n}\n" for n in plan.names))
    listed: list[Path] = []
    kind_of: dict[str, int] = {}
    coverage = []
    for kind, source in enumerate(plan.sources):
        written = _write_source(plan, source, caches, weights, folder)
        LOGGER.info(f"{source.name}: {len(source.train)} images, {len(written)} frames")
        kind_of.update({str(path): kind for path in written})
        listed += written * source.repeat
        covered = source.labelled, plan.taught(source)
        coverage.append(Coverage(*(tuple(n in names for n in plan.names) for names in covered)))
        if source.name in val:
            _write_val(plan, source, folder / "val" / source.name)
    write_list(folder / "train.txt", listed)
    images = folder / "val" / evaluated[0].name / "images"
    data = DataSet(frames.data, plan.names, folder / "train.txt", images)
    data.write_resolved(frames.data)
    write_regions(folder / REGIONS, coverage, kind_of)  # last: its presence means complete
    return frames


def write_regions(path: Path, coverage: list[Coverage], kind_of: dict[str, int]) -> None:
    """Write the kinds of images (classes with labels, with teachers) and each image's kind."""
    write_text(path, json.dumps({"kinds": [asdict(c) for c in coverage], "frames": kind_of}))


def read_regions(path: Path) -> tuple[list[Coverage], dict[str, int]]:
    """Read the kinds of images, and each image's kind, from `write_regions`; else DataError."""
    try:
        content = read_json(path, _REGIONS_BYTES)
        kinds = [Coverage(tuple(k["labelled"]), tuple(k["predicted"])) for k in content["kinds"]]
        return kinds, dict(content["frames"])
    except (ParseError, KeyError, TypeError, ValueError):
        raise DataError(
            f"{one_line(path)}: expected what `write_regions` writes; delete its folder"
        ) from None


def measure_weights(plan: Plan, caches: dict[str, PredictionCache]) -> dict[str, np.ndarray]:
    """Return the weight of each teacher by class, (C,): its precision, or what the plan gives.

    Precision is measured on labelled training images of sources where two teachers know the
    class: elsewhere the weight does not matter. A class that the teacher does not know has 0.
    """
    found = {}
    for teacher in plan.teachers:
        weights = np.zeros(len(plan.names))
        lines = []
        for name in teacher.taught_classes:
            shared = [
                s
                for s in plan.sources
                if s.name in teacher.sources
                and sum(name in t.taught_classes for t in plan.teachers_of(s)) > 1
            ]
            labelled = [s for s in shared if name in s.labelled]
            cache = caches[teacher.name]
            counts = [_count_on_labels(plan, teacher, s, name, cache) for s in labelled]
            right, total, labels = (sum(column) for column in zip((0, 0, 0), *counts, strict=True))
            measured = labels >= MEASURED_LABELS and total > 0
            # Plus one true and one false positive: two predictions do not prove a precision of 1.
            weight = (right + 1) / (total + 2) if measured else teacher.weight[name]
            weights[plan.names.index(name)] = weight
            if shared:
                how = f"{right} of {total} right" if measured else "given"
                lines.append(f"{name} {weight:.2f} ({how})")
        if lines:
            LOGGER.info(f"weight of {teacher.name}: {', '.join(lines)}")
        found[teacher.name] = weights
    return found


def _count_on_labels(
    plan: Plan, teacher: Teacher, source: Source, name: str, cache: PredictionCache
) -> tuple[int, int, int]:
    """Return the true positives, predictions and labels of a class on a source's images."""
    class_id = plan.names.index(name)
    right = total = labels = 0
    for path in source.train[:: math.ceil(len(source.train) / MEASURED_IMAGES)]:
        sample = read_sample(path, len(source.names))
        if sample is None:
            continue
        truth = _truth(plan, source, sample)
        table = cache.of(path, sample.image.shape[:2])
        counts = count_right(translate(table, teacher, source.name, plan.names), truth, class_id)
        right, total = right + counts[0], total + counts[1]
        labels += int((truth[:, 4] == class_id).sum())
    return right, total, labels


def _truth(plan: Plan, source: Source, sample: Sample) -> np.ndarray:
    """Return labels (m, 5) as in `fusion.count_right`, of the classes that labels cover."""
    targets = [source.classes.get(name) for name in source.names]
    ours = np.array([plan.names.index(t) if t in source.labelled else -1 for t in targets], int)
    height, width = sample.image.shape[:2]
    boxes = sample.xyxy / np.array([width, height] * 2, np.float32)
    ids = ours[sample.class_ids]
    table = np.concatenate([boxes, ids[:, None]], axis=1)
    return table[ids >= 0]


def _write_source(
    plan: Plan,
    source: Source,
    caches: dict[str, PredictionCache],
    weights: dict[str, np.ndarray],
    folder: Path,
) -> list[Path]:
    """Write images, labels and predictions of one source; return the images."""
    written: list[Path] = []
    teachers = plan.teachers_of(source)
    choose = _Thinning(source.crops)
    for number, path in enumerate(track(source.train, f"Write {source.name}", "image")):
        sample = read_sample(path, len(source.names)) if source.labelled else _unlabelled(path)
        if sample is None:
            continue
        shape = sample.image.shape[:2]
        tables = [
            translate(caches[t.name].of(path, shape), t, source.name, plan.names) for t in teachers
        ]
        fused = fuse(tables, [weights[t.name] for t in teachers])
        truth = _truth(plan, source, sample)
        for suffix, image, window in views(sample.image, source.crops):
            labels, predictions = boxes_inside(truth, window), boxes_inside(fused, window)
            if not choose(labels, predictions):
                continue
            target = folder / "images/train" / f"{source.name}-{number:05d}{suffix}"
            if image is None:
                target = target.with_suffix(path.suffix)
                target.symlink_to(path)
            else:
                write_image(target, image, JPEG_QUALITY)
            name = f"{target.stem}.txt"
            _write_rows(folder / "labels/train" / name, labels)
            _write_rows(folder / "predictions" / name, predictions[:, [0, 1, 2, 3, 5, 4]])
            written.append(target)
    if not written:
        raise DataError(f"source {source.name}: none of its images can be used")
    return written


class _Thinning:
    """Decides which windows to use: every n-th, and of the empty ones every m-th of these."""

    def __init__(self, crops: Crops | None) -> None:
        self._crops = crops
        self._windows = self._empty = 0

    def __call__(self, labels: np.ndarray, predictions: np.ndarray) -> bool:
        if self._crops is None:
            return True
        self._windows += 1
        if self._windows % self._crops.every:
            return False
        if len(labels) or (predictions[:, 4] >= OBJECT_SCORE).any():
            return True
        self._empty += 1
        return self._empty % self._crops.empty_every == 0


def _unlabelled(path: Path) -> Sample | None:
    try:
        image = read_image(path)
    except SourceError as error:
        LOGGER.warning(f"ignored {one_line(error)}")
        return None
    return Sample(path, image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))


def _write_rows(path: Path, table: np.ndarray) -> None:
    """Write a label file: xyxy, class and perhaps score."""
    boxes = centre_and_size(table[:, :4]).clip(0, 1)
    scores = table[:, 5].clip(0, 1) if table.shape[1] > 5 else None
    path.write_text(label_lines(table[:, 4], boxes, scores), encoding="utf-8")


def _write_val(plan: Plan, source: Source, folder: Path) -> None:
    """Write the validation split of a source, with labels in the student's classes."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number, path in enumerate(source.val):
        sample = read_sample(path, len(source.names))
        if sample is None:
            continue
        stem = f"{number:05d}-{path.stem}"
        (folder / "images" / f"{stem}{path.suffix}").symlink_to(path)
        _write_rows(folder / "labels" / f"{stem}.txt", _truth(plan, source, sample))
    content = {"train": "images", "val": "images", "names": dict(enumerate(plan.names))}
    write_text(folder / "data.yaml", yaml.safe_dump(content, sort_keys=False))
