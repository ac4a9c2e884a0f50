# SPDX-License-Identifier: AGPL-3.0-or-later
"""Training data of a run: which frames, and what travels through augmentation with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert
from ultralytics.utils import LOGGER

from drone_kd.files import write_text
from drone_kd.parsing import ParseError, read_json
from drone_kd.text import one_line
from drone_kd_training.data.dataset import DataSet, image_paths, write_list
from drone_kd_training.data.names import DataError
from drone_kd_training.distillation.uncached_dataset import NEEDS_LABELS, build_dataset
from drone_kd_training.models.checkpoints import ClassMatch, UnusableModelError
from drone_kd_training.models.safe_loading import read_plain, write_plain
from drone_kd_training.teachers.soft_labels import (
    PSEUDO_LABELS,
    Coverage,
    Thresholds,
    extend_labels,
    split_batch,
)
from drone_kd_training.teachers.teachers import Predictions, Teacher
from drone_kd_training.teachers.teaching_dataset import REGIONS, read_regions, write_regions

# Below the folder of a run: frames in which not every class is labelled, with `REGIONS` and
# `THRESHOLDS` (the file is missing with a plan, whose scores have the usual ones).
FRAMES, THRESHOLDS = "frames", "thresholds.json"
# Also below it: a teacher's boxes on the unlabelled frames, with --pseudo-labels frame.
FRAME_BOXES = "pseudo_labels.pt"
# In the folder of a run: its training frames, where they are not those of the data.
TRAIN_LIST = "train.txt"


_THRESHOLD_BYTES = 1_000_000


def spread_fraction(split: Path, fraction: float, output: Path) -> Path:
    """Write a share in (0, 1] of a split, evenly spread, to the list ``output``; return it.

    Ultralytics' own ``fraction`` takes the first frames, which are all of one flight.
    """
    paths = image_paths(split)
    count = max(1, round(len(paths) * fraction))
    kept = [paths[i * len(paths) // count] for i in range(count)]
    write_list(output, kept)
    return output


def add_unlabelled(
    data: DataSet,
    labelled: list[Path],
    unlabelled: list[Path],
    match: ClassMatch,
    output: Path,
    labelled_share: float,
) -> None:
    """Write the list of labelled and unlabelled training frames, and which classes each covers.

    ``output`` is the folder of the run. The fewer frames are listed several times, so that about
    ``labelled_share`` of all are labelled.
    """
    listed = mixed(labelled, unlabelled, labelled_share)
    write_list(output / TRAIN_LIST, listed)
    known = {i for i, _ in match.pairs}
    predicted = tuple(i in known for i in range(len(data.names)))
    kinds = [Coverage((labelled,) * len(data.names), predicted) for labelled in (True, False)]
    without_labels = set(unlabelled)
    kind_of = {str(path): int(path in without_labels) for path in listed}
    write_regions(output / FRAMES / REGIONS, kinds, kind_of)


def mixed(labelled: list[Path], others: list[Path], labelled_share: float) -> list[Path]:
    """Return a list of both, the fewer several times: about ``labelled_share`` are labelled.

    0: each once.
    """
    if not labelled or not labelled_share:
        return labelled + others
    wanted = labelled_share * len(others) / ((1 - labelled_share) * len(labelled))
    return labelled * max(1, round(wanted)) + others * max(1, round(1 / wanted))


def write_thresholds(folder: Path, thresholds: Thresholds) -> None:
    """Write the thresholds of pseudo-labels, for `read_thresholds`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / THRESHOLDS, json.dumps(asdict(thresholds)))


def read_thresholds(folder: Path) -> Thresholds | None:
    """Read the thresholds of pseudo-labels, None without the file; else DataError."""
    path = folder / THRESHOLDS
    if not path.is_file():
        return None
    try:
        content = read_json(path, _THRESHOLD_BYTES)
        return Thresholds(*(tuple(map(float, content[key])) for key in ("high", "low")))
    except (ParseError, KeyError, TypeError, ValueError):
        raise DataError(
            f"{one_line(path)}: expected thresholds by class; start the run anew"
        ) from None


def write_pseudo_labels(folder: Path, tables: Mapping[Path, np.ndarray], lowest: float) -> None:
    """Write a teacher's boxes on unlabelled frames, for `read_pseudo_labels`.

    Args:
        tables: image -> float32 (n, 4 + C), xyxy in [0, 1] and scores in the student's classes.
        lowest: best score of a box that is written, at least.
    """
    kept = {str(p): torch.from_numpy(t[t[:, 4:].max(axis=1) >= lowest]) for p, t in tables.items()}
    rows = torch.cat(list(kept.values()))
    boxes = box_convert(rows[:, :4], "xyxy", "cxcywh")
    counts = torch.tensor([len(table) for table in kept.values()])
    content = {"frames": list(kept), "counts": counts, "boxes": boxes, "scores": rows[:, 4:]}
    folder.mkdir(parents=True, exist_ok=True)
    write_plain(folder / FRAME_BOXES, content)


def read_pseudo_labels(folder: Path, names: tuple[str, ...]) -> Predictions | None:
    """Read what `write_pseudo_labels` wrote, None without the file; else DataError."""
    path = folder / FRAME_BOXES
    if not path.is_file():
        return None
    content = read_plain(path)
    try:
        counts = content["counts"].tolist()
        boxes, scores = (content[key].float() for key in ("boxes", "scores"))
        if boxes.shape[1:] != (4,) or scores.shape[1:] != (len(names),):
            raise ValueError("tables of another kind")
        tables = zip(boxes.split(counts), scores.split(counts), strict=True)
        found = {
            str(frame): (box.numpy(), score.numpy())
            for frame, (box, score) in zip(content["frames"], tables, strict=True)
        }
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        raise DataError(
            f"{one_line(path)}: expected boxes on unlabelled frames; start the run anew"
        ) from None
    return Predictions(names, found, pixels=False)


class TrainData:
    """Training data whose labels carry a teacher's predictions and the coverage of each frame.

    Args:
        run: folder of the run.
        source: how the user named the teacher, for messages.
        data: Ultralytics' description of the data.
    """

    def __init__(self, run: Path, source: str, teacher: Teacher, data: dict) -> None:
        self.source = source
        self.predictions = teacher if isinstance(teacher, Predictions) else None
        self.data = data
        self.kinds: list[Coverage] | None = None
        self.kind_of: dict[str, int] = {}
        self.scores: Tensor | None = None
        self.thresholds = read_thresholds(run / FRAMES)
        names = tuple(data["names"].values())
        self.pseudo_labels = read_pseudo_labels(run / FRAMES, names)
        if (regions := run / FRAMES / REGIONS).is_file():
            self.kinds, self.kind_of = read_regions(regions)
            labelled = any(any(self.kinds[kind].labelled) for kind in set(self.kind_of.values()))
            self.data = {**data, NEEDS_LABELS: labelled}

    def build_dataset(self, args, images: str, batch: int | None, stride: int) -> Any:
        """Return Ultralytics' dataset of a folder or list of images with the extended labels.

        Raises:
            UnusableModelError: stored predictions that belong to other images.
        """
        dataset: Any = build_dataset(args, images, batch, self.data, "train", stride)
        if self.predictions is None and self.kinds is None:
            return dataset
        self.scores, frames = extend_labels(
            dataset.labels,
            self.data["nc"],
            self.kinds,
            self.kind_of,
            self.pseudo_labels or self.predictions,
        )
        if self.predictions is not None and not frames:
            raise UnusableModelError(
                f"{self.source}: no prediction is named like a training frame"
            )
        unlabelled = [i for i, kind in enumerate(self.kinds or []) if not any(kind.labelled)]
        count = sum(self.kind_of.get(label["im_file"]) in unlabelled for label in dataset.labels)
        with_predictions = f", {frames} with predictions of the teacher" if frames else ""
        LOGGER.info(
            f"{len(dataset.labels)} training frames, {count} of them without labels"
            f"{with_predictions}"
        )
        return dataset

    def split(self, batch: dict) -> dict:
        """Return a batch without the rows that extended the labels; see `split_batch`.

        Boxes on unlabelled frames are its ``pseudo_labels``.
        """
        if self.scores is None:
            return batch
        batch = split_batch(batch, self.data["nc"], self.kinds, self.scores)
        if self.pseudo_labels is not None:
            batch[PSEUDO_LABELS] = batch.pop("predictions")
        return batch
