# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ultralytics' data set, read only.

Ultralytics unpickles ``labels/train.cache`` before it checks it, so that a data set of others
could run code. ``image.npy`` beside an image replaces the pixels that a user sees. A JPEG with
bytes after its end is encoded anew in its place, and an image of any size is decoded. Links to
folders are followed, which may lead in circles.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from ultralytics.data import base, utils
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils import LOGGER, NUM_THREADS, TQDM

from drone_kd.media.compressed_images import (
    ALWAYS_PIXELS,
    HEADER_BYTES,
    check_size,
    image_size,
)
from drone_kd.media.image_files import SourceError, read_image
from drone_kd.progress import track
from drone_kd.text import one_line
from drone_kd_training.data.dataset import MAX_LABEL_BYTES, check_number_of_boxes
from drone_kd_training.distillation.train_loader import View
from drone_kd_training.quiet import reworded

# A file that cannot exist.
# Key of Ultralytics' description of the data: False where a teacher alone teaches.
NEEDS_LABELS = "needs_labels"
_NO_FILE = Path(os.devnull, "none")
# Enough for the size in most headers; other images are decoded to be checked.
_HEADER_BYTES = 65_536
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"


class UncachedDataset(YOLODataset):
    """Reads labels and images from their own files only, and writes nothing beside them.

    Attributes:
        seed: of the augmentation of training frames, which are drawn as a `View`.
    """

    seed: int = 0

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """Return an augmented frame with its ``view``, or that of an index as it is."""
        if not isinstance(index, View):
            return super().__getitem__(index)
        index.seed_generators(self.seed)
        return {**super().__getitem__(index.frame), "view": index}

    @property
    def npy_files(self) -> list[Path]:
        """Where Ultralytics looks for cached pixels: nowhere."""
        return [_NO_FILE] * len(self.im_files)

    @npy_files.setter
    def npy_files(self, paths: Iterable[Path]) -> None:
        """Ignore the files beside the images."""

    def get_labels(self) -> list[dict]:
        """Return the labels of all readable images, in Ultralytics' form.

        Raises:
            ValueError: no image of a training set has a label file.
            RuntimeError: no image can be read.
        """
        folder = Path(self.get_label_files()[0]).parent
        labels, messages, labelled = [], [], 0
        _, items = self.verify_args()
        with ThreadPool(NUM_THREADS) as pool:
            checked = pool.imap(_verify, items)
            total = len(self.im_files)
            for result in track(checked, f"Read {folder}", unit="image", total=total):
                label, _, found, _, _, message = self.result_to_label(result)
                labelled += found
                labels += [] if label is None else [label]
                messages += [one_line(message, 500)] if message else []
        if messages:
            LOGGER.warning("\n".join(reworded(message) or message for message in messages))
        if not labels:
            raise RuntimeError(f"no image can be read whose labels are in {folder}")
        if not labelled:
            if self.augment and self.data.get(NEEDS_LABELS, True):
                raise ValueError(f"no label file in {folder}")
            if self.data.get(NEEDS_LABELS, True):
                LOGGER.warning(f"No labels found for {folder}")
        self.im_files = [label["im_file"] for label in labels]
        if self.data.get(NEEDS_LABELS, True):
            self.verify_labels(labels, folder)
        return labels


def build_dataset(
    args: Any,
    images: str,
    batch: int | None,
    data: dict[str, Any],
    mode: str,
    stride: int,
) -> UncachedDataset:
    """Return the data set of a folder or list of images, as Ultralytics' `build_yolo_dataset`.

    ``mode``: "train" or "val". ``data``: Ultralytics' description of the data.
    """
    training = mode == "train"
    return UncachedDataset(
        img_path=images,
        imgsz=args.imgsz,
        batch_size=batch,
        augment=training,
        hyp=args,
        rect=args.rect or not training,
        cache=args.cache or None,
        single_cls=args.single_cls or False,
        stride=stride,
        pad=0.0 if training else 0.5,
        prefix=f"{mode}: ",
        task=args.task,
        classes=args.classes,
        data=data,
    )


def _verify(item: tuple) -> Any:
    """Check an image and its labels, as Ultralytics' `verify_image_label`, without a repair."""
    image, labels, prefix, *_ = item
    try:
        _check_image(Path(image))
        if os.path.isfile(labels) and os.path.getsize(labels) > MAX_LABEL_BYTES:  # noqa: PTH113, PTH202
            raise ValueError(f"labels of more than {MAX_LABEL_BYTES / 1e6:g} MB")
        if os.path.isfile(labels):  # noqa: PTH113
            with Path(labels).open("rb") as file:
                check_number_of_boxes(sum(1 for line in file if line.strip()), labels)
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix(f"{image}: ")
        message = f"{prefix}{image}: ignoring corrupt image/label: {reason}"
        return [None] * 5 + [0, 0, 0, 1, message]
    return utils.verify_image_label(item)


def _check_image(path: Path) -> None:
    """Refuse an image that `read_image` would refuse; SourceError, EncodedError, OSError.

    The header is enough where it has the size, and the file ends as it should.
    """
    if not path.is_file():
        raise SourceError("expected a file, got another kind")
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
        file.seek(max(0, path.stat().st_size - len(_JPEG_END)))
        end = file.read()
    size = image_size(head)
    if size is not None and size[0] * size[1] > ALWAYS_PIXELS:
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
    if size is None or (head.startswith(_JPEG_START) and end != _JPEG_END):
        read_image(path)
    else:
        check_size(head)


def _read(path: str | Path, flags: int = 0) -> np.ndarray | None:
    """Return the pixels of an image, BGR uint8 (h, w, 3), or None, as Ultralytics' `imread`."""
    try:
        return read_image(path)
    except SourceError:
        return None


def _find(pattern: str, recursive: bool = True) -> list[str]:
    """Return the paths with a dot below a folder, as `glob` of "FOLDER/**/*.*".

    Links to folders below it are not followed.
    """
    top = pattern.removesuffix(os.path.join("**", "*.*"))  # noqa: PTH118
    found = []
    for folder, below, files in os.walk(re.sub(r"\[([*?[])\]", r"\1", top)):
        below[:] = [name for name in below if not name.startswith(".")]
        names = [name for name in (*below, *files) if "." in name[1:] and name[0] != "."]
        found += [os.path.join(folder, name) for name in names]  # noqa: PTH118
    return found


def _silent_bar(*args: Any, **options: Any) -> TQDM:
    """Return Ultralytics' progress bar of the image cache, which hides."""
    return TQDM(*args, **{**options, "disable": True})


# Ultralytics looks these names up when it reads an image, checks one, and opens a data set.
base.__dict__["glob"] = SimpleNamespace(glob=_find, escape=glob.escape)
base.__dict__["imread"] = _read
utils.__dict__[utils._replace_image.__name__] = lambda path, write: None
base.__dict__["TQDM"] = _silent_bar
base.__dict__[base.check_file_speeds.__name__] = lambda files, **_: None
