# SPDX-License-Identifier: AGPL-3.0-or-later
"""From sources and teachers to one data set: frames, labels, answers, and who speaks for what.

The folder that `write_frames` leaves:

    images/train, labels/train   every frame (a link, or a window of a picture), by source
    answers/                     the fused answers, as a folder of predictions (`--teacher`)
    val/SOURCE/                  images and labels of the validation splits, in our classes
    data.yaml, regions.json      the data set; which classes labels and teachers cover, by frame
"""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml
from ultralytics.utils import LOGGER

from drone_kd.progress import track
from drone_kd_training.data.dataset import (
    DataError,
    Sample,
    centre_and_size,
    label_lines,
    read_sample,
    write_text,
)
from drone_kd_training.teachers.fusion import count_right, fuse, translate
from drone_kd_training.teachers.plan import Crops, Plan, Source
from drone_kd_training.teachers.prediction_cache import Answers
from drone_kd_training.teachers.soft_labels import Coverage
from drone_kd_training.teachers.teachers import CLASSES_FILE

REGIONS = "regions.json"
# Of an object at a window's edge at least this share must be inside for it to count.
INSIDE = 0.3
# A precision is measured on so many labelled pictures of a source.
MEASURED_PICTURES = 100
# Of fewer labels of a class nothing follows.
MEASURED_LABELS = 20
JPEG_QUALITY = 92


@dataclass(frozen=True)
class Frames:
    """What was written: ``data`` (data.yaml), ``answers`` (folder), ``val`` by source: its
    data.yaml and the classes that its labels cover.
    """

    data: Path
    answers: Path
    val: dict[str, tuple[Path, tuple[str, ...]]]


def write_frames(plan: Plan, folder: Path) -> Frames:
    """Ask the teachers, fuse what they say, and write frames with labels and answers.

    What is done is not done again: answers are kept by picture, and a folder that is complete is
    left as it is.

    Raises:
        DataError: a picture that cannot be read.
    """
    found = Frames(
        folder / "data.yaml",
        folder / "answers",
        {
            s.name: (folder / "val" / s.name / "data.yaml", s.labelled)
            for s in plan.sources
            if s.labelled and s.val
        },
    )
    if (folder / REGIONS).is_file():
        return found
    answers = {t.name: Answers(t, plan.answers, plan.names) for t in plan.teachers}
    for teacher in plan.teachers:
        pictures = [p for s in plan.sources if s.name in teacher.sources for p in s.train]
        answers[teacher.name].compute(pictures)
    weights = measure_weights(plan, answers)
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("images/train", "labels/train", "answers"):
        (folder / part).mkdir(parents=True)
    write_text(folder / "answers" / CLASSES_FILE, "".join(f"{n}\n" for n in plan.names))
    listed: list[Path] = []
    kind_of: dict[str, int] = {}
    for kind, source in enumerate(plan.sources):
        written = _write_source(plan, source, answers, weights, folder)
        LOGGER.info(f"{source.name}: {len(source.train)} pictures, {len(written)} frames")
        kind_of.update({str(path): kind for path in written})
        listed += written * source.repeat
        if source.name in found.val:
            _write_val(plan, source, folder / "val" / source.name)
    write_text(folder / "train.txt", "".join(f"{path}\n" for path in listed))
    first = next(iter(found.val.values()))[0].parent
    content = {
        "train": str(folder / "train.txt"),
        "val": str(first / "images"),
        "names": dict(enumerate(plan.names)),
    }
    write_text(found.data, yaml.safe_dump(content, sort_keys=False))
    coverage = [
        Coverage(
            tuple(name in source.labelled for name in plan.names),
            tuple(name in plan.answered(source) for name in plan.names),
        )
        for source in plan.sources
    ]
    write_regions(folder / REGIONS, coverage, kind_of)  # last: its presence means complete
    return found


def write_regions(path: Path, coverage: list[Coverage], kind_of: dict[str, int]) -> None:
    """Write which classes labels and teachers cover, and which of these kinds each frame is."""
    content = {"kinds": [asdict(c) for c in coverage], "frames": kind_of}
    write_text(path, json.dumps(content))


def read_regions(path: Path) -> tuple[list[Coverage], dict[str, int]]:
    """Read what `write_regions` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    kinds = [
        Coverage(*(tuple(kind[k]) for k in ("labelled", "answered"))) for kind in content["kinds"]
    ]
    return kinds, content["frames"]


def measure_weights(plan: Plan, answers: dict[str, Answers]) -> dict[str, np.ndarray]:
    """By teacher (C,): the precision of its sure answers on labelled training pictures of its
    sources; the plan's weight where no labels tell; 0 for what it does not know.

    It is measured where two teachers answer for a class alone: elsewhere it does not matter.
    """
    found = {}
    for teacher in plan.teachers:
        weights = np.zeros(len(plan.names))
        told = []
        for name in teacher.answers_for:
            class_id = plan.names.index(name)
            shared = [
                s
                for s in plan.sources
                if sum(name in t.answers_for for t in plan.teachers_of(s)) > 1
                and teacher in plan.teachers_of(s)
            ]
            right = total = labels = 0
            for source in shared:
                if name not in source.labelled:
                    continue
                step = max(1, math.ceil(len(source.train) / MEASURED_PICTURES))
                for path in source.train[::step]:
                    sample = read_sample(path, len(source.names))
                    if sample is None:
                        continue
                    table = answers[teacher.name].of(path, sample.image.shape[:2])
                    truth = _truth(plan, source, sample)
                    labels += (truth[:, 4] == class_id).sum()
                    table = translate(table, teacher, source.name, plan.names)
                    counts = count_right(table, truth, class_id)
                    right, total = right + counts[0], total + counts[1]
            measured = labels >= MEASURED_LABELS and total > 0
            # With one right and one wrong answer more: of two answers little follows.
            weights[class_id] = (right + 1) / (total + 2) if measured else teacher.weight[name]
            if shared:
                how = f"{right} of {total} right" if measured else "given"
                told.append(f"{name} {weights[class_id]:.2f} ({how})")
        if told:
            LOGGER.info(f"weight of {teacher.name}: {', '.join(told)}")
        found[teacher.name] = weights
    return found


def _truth(plan: Plan, source: Source, sample: Sample) -> np.ndarray:
    """Labels (m, 5) as in `fusion.count_right`, of the classes that the source's labels cover."""
    ours = np.array([_class_of(plan, source, name) for name in source.names])
    height, width = sample.image.shape[:2]
    boxes = sample.xyxy / np.array([width, height] * 2, np.float32)
    ids = ours[sample.class_ids] if len(sample.class_ids) else np.zeros(0, int)
    table = np.concatenate([boxes, ids[:, None]], axis=1)
    return table[ids >= 0]


def _class_of(plan: Plan, source: Source, name: str) -> int:
    target = source.classes.get(name)
    return plan.names.index(target) if target in source.labelled else -1


def _write_source(
    plan: Plan,
    source: Source,
    answers: dict[str, Answers],
    weights: dict[str, np.ndarray],
    folder: Path,
) -> list[Path]:
    """Frames, labels and answers of one source; returns the frames."""
    written: list[Path] = []
    teachers = plan.teachers_of(source)
    seen_views = empty = 0
    for number, path in enumerate(track(source.train, f"Write {source.name}", "image")):
        sample = read_sample(path, len(source.names)) if source.labelled else _unlabelled(path)
        if sample is None:
            continue
        shape = sample.image.shape[:2]
        tables = [
            translate(answers[t.name].of(path, shape), t, source.name, plan.names)
            for t in teachers
        ]
        fused = fuse(tables, [weights[t.name] for t in teachers])
        truth = _truth(plan, source, sample)
        stem = f"{source.name}-{number:05d}"
        for suffix, image, window in views(sample.image, source.crops):
            seen_views += 1
            if source.crops and seen_views % source.crops.every:
                continue
            labels, seen = boxes_inside(truth, window), boxes_inside(fused, window)
            if source.crops and not len(labels) and not (seen[:, 4] >= 0.3).any():
                empty += 1
                if empty % source.crops.empty_every:
                    continue
            target = folder / "images/train" / f"{stem}{suffix}"
            if image is None:
                target = target.with_suffix(path.suffix)
                target.symlink_to(path)
            elif not cv2.imwrite(str(target), image, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)):
                raise OSError(f"{target} could not be written")
            _write_rows(
                folder / "labels/train" / f"{target.stem}.txt", labels[:, :4], labels[:, 4]
            )
            _write_rows(
                folder / "answers" / f"{target.stem}.txt", seen[:, :4], seen[:, 5], seen[:, 4]
            )
            written.append(target)
    if not written:
        raise DataError(f"source {source.name}: none of its pictures can be used")
    return written


def _unlabelled(path: Path) -> Sample | None:
    image = cv2.imread(str(path))
    if image is None:
        LOGGER.warning(f"ignored {path}: not readable as a picture")
        return None
    return Sample(path, image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))


def views(image: np.ndarray, crops: Crops | None):
    """What the student sees of a picture: suffix of the name, pixels (None: the picture itself),
    and the window (x1, y1, x2, y2) in [0, 1] of the picture.
    """
    if crops is None:
        yield "", None, (0.0, 0.0, 1.0, 1.0)
        return
    for scale in crops.scales:
        scaled = image
        if scale != 1:
            how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            scaled = cv2.resize(image, None, fx=scale, fy=scale, interpolation=how)
        height, width = scaled.shape[:2]
        for y1, y2 in _spans(height, crops.size):
            for x1, x2 in _spans(width, crops.size):
                window = (x1 / width, y1 / height, x2 / width, y2 / height)
                yield f"-{scale:.2f}-{x1}-{y1}.jpg", scaled[y1:y2, x1:x2], window


def _spans(length: int, size: int) -> list[tuple[int, int]]:
    """Windows of ``size`` that cover ``length``, as few as it takes, evenly spread."""
    size = min(size, length)
    starts = np.linspace(0, length - size, math.ceil(length / size)).round().astype(int)
    return [(int(start), int(start) + size) for start in starts]


def boxes_inside(table: np.ndarray, window: tuple[float, float, float, float]) -> np.ndarray:
    """The boxes (first four columns) that lie in a window, clipped to and relative to it."""
    x1, y1, x2, y2 = window
    clipped = np.clip(table[:, :4], [x1, y1, x1, y1], [x2, y2, x2, y2])
    area, inside = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (table[:, :4], clipped))
    kept = (inside > INSIDE * area) & (area > 0)
    boxes = (clipped[kept] - [x1, y1, x1, y1]) / [x2 - x1, y2 - y1, x2 - x1, y2 - y1]
    return np.concatenate([boxes, table[kept, 4:]], axis=1)


def _write_rows(
    path: Path, xyxy: np.ndarray, class_ids: np.ndarray, scores: np.ndarray | None = None
) -> None:
    """YOLO's lines: class, centre, size, and where there are some, scores."""
    boxes = centre_and_size(xyxy).clip(0, 1)
    sure = None if scores is None else scores.clip(0, 1)
    path.write_text(label_lines(class_ids, boxes, sure), encoding="utf-8")


def _write_val(plan: Plan, source: Source, folder: Path) -> None:
    """The validation split of a source with labels in the student's classes."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number, path in enumerate(source.val):
        sample = read_sample(path, len(source.names))
        if sample is None:
            continue
        stem = f"{number:05d}-{path.stem}"
        os.symlink(path, folder / "images" / f"{stem}{path.suffix}")
        truth = _truth(plan, source, sample)
        _write_rows(folder / "labels" / f"{stem}.txt", truth[:, :4], truth[:, 4])
    content = {"train": "images", "val": "images", "names": dict(enumerate(plan.names))}
    write_text(folder / "data.yaml", yaml.safe_dump(content, sort_keys=False))
