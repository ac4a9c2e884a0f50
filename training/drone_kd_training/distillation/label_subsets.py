# SPDX-License-Identifier: AGPL-3.0-or-later
"""Subsets of the labels of a data set: some frames with labels, the others without.

Tiles of one frame belong together: where they overlap, they show the same objects. They are
recognised by their name: that of the frame, then ``-YYYY-XXXX``, the corner of the tile in pixels,
as `benchmarks/tiles.py` writes it. An image with another name is a frame by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from drone_kd.text import one_line
from drone_kd_training.data.dataset import (
    DataSet,
    image_paths,
    label_path,
    read_labels,
    write_list,
)
from drone_kd_training.data.names import DataError

# Of the labelled images without an object one in so many is kept, as an annotator would. All
# unlabelled images are kept: nothing tells which of them are empty.
EMPTY_EVERY = 4
_CORNER = re.compile(r"-\d{4,5}-\d{4,5}$")


@dataclass(frozen=True)
class Subset:
    """Files of a subset: data.yaml of the labelled images, list of the unlabelled ones.

    ``unlabelled`` is None where all frames are labelled.
    """

    data: Path
    unlabelled: Path | None


def frames(images: Iterable[Path]) -> list[list[Path]]:
    """Return the images grouped by frame, both in the given order."""
    found: dict[Path, list[Path]] = {}
    for path in images:
        found.setdefault(frame_path(path), []).append(path)
    return list(found.values())


def frame_path(image: Path) -> Path:
    """Return the path of the frame that an image is, or is a tile of."""
    return image.with_name(_CORNER.sub("", image.stem) + image.suffix)


def choose_frames(count: int, labels: int, subset: int) -> set[int]:
    """Return the indices of the labelled ones among ``count`` frames, at random by subset.

    Those of fewer labels are among those of more, so that a learning curve adds labels.

    Raises:
        DataError: there are not as many frames.
    """
    if not 0 < labels <= count:
        raise DataError(f"expected 1 to {count} labelled frames, got {labels}")
    return set(np.random.default_rng(subset).permutation(count)[:labels].tolist())


def annotated(images: Iterable[Path], classes: int) -> list[Path]:
    """Return the images with an object, and one in `EMPTY_EVERY` of the others.

    Raises:
        DataError: a label file cannot be used.
    """
    kept, empty = [], 0
    for path in images:
        if not len(read_labels(label_path(path), classes)):
            empty += 1
            if empty % EMPTY_EVERY:
                continue
        kept.append(path)
    return kept


def write_subset(dataset: DataSet, labels: int, subset: int, folder: Path) -> Subset:
    """Write the files of a subset, unless they are there; labels of other frames are not read.

    Args:
        dataset: fully labelled.
        labels: number of labelled frames.
        subset: number of the subset, the seed of the choice.
        folder: where files are written; absolute.

    Raises:
        DataError: too few frames, or none of those chosen has an object.
    """
    groups = frames(image_paths(dataset.train))
    chosen = choose_frames(len(groups), labels, subset)
    unlabelled = folder / "unlabelled.txt" if labels < len(groups) else None
    data, train = folder / "data.yaml", folder / "train.txt"
    if data.is_file():
        return Subset(data, unlabelled)
    own = [path for i in sorted(chosen) for path in groups[i]]
    kept = annotated(own, len(dataset.names))
    if not any(len(read_labels(label_path(path), len(dataset.names))) for path in kept):
        raise DataError(
            f"{one_line(dataset.yaml_path)}: subset {subset}: expected an object in {labels} "
            "labelled frames, got none; take more frames or another subset"
        )
    write_list(train, kept)
    if unlabelled is not None:
        others = (path for i, group in enumerate(groups) if i not in chosen for path in group)
        write_list(unlabelled, others)
    few = replace(dataset, train=train, test=None)
    return Subset(few.write_resolved(data), unlabelled)  # last: now the files are complete
