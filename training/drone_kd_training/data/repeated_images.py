# SPDX-License-Identifier: AGPL-3.0-or-later
"""Validation images that are copies of training images: figures on them say little."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from drone_kd.files import file_sha256
from drone_kd.text import one_line
from drone_kd_training.data.dataset import DataSet, image_paths


def repeated_images(dataset: DataSet) -> list[Path]:
    """Return the validation images whose file is byte for byte one of the training images.

    Files of another size are not read. Other encodings of a frame: `data.near_duplicates`.
    """
    train: defaultdict[int, list[Path]] = defaultdict(list)
    for path in filter(Path.is_file, image_paths(dataset.train)):
        train[path.stat().st_size].append(path)
    hashes: dict[int, set[str]] = {}
    found = []
    for path in filter(Path.is_file, image_paths(dataset.val)):
        if same := train.get(size := path.stat().st_size):
            if size not in hashes:
                hashes[size] = {file_sha256(other) for other in same}
            if file_sha256(path) in hashes[size]:
                found.append(path)
    return found


def repeated_note(dataset: DataSet) -> str:
    """Return one line on validation images that repeat training images, or ""."""
    found = repeated_images(dataset)
    if not found:
        return ""
    share = f"{len(found)} of {len(image_paths(dataset.val))}"
    return (
        f"{share} validation images are copies of training images, such as "
        f"{one_line(found[0].name, 60)}, so the figures are too good: take images of other flights"
    )
