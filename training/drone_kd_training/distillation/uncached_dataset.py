# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ultralytics' data set without its cache files.

Ultralytics unpickles ``labels/train.cache`` before it checks it, so that a data set of others
could run code. ``image.npy`` beside an image replaces the pixels that a user sees.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from ultralytics.data.dataset import YOLODataset
from ultralytics.utils import LOGGER, NUM_THREADS, colorstr

from drone_kd.progress import track

# A file that cannot exist.
_NO_FILE = Path(os.devnull, "none")


class UncachedDataset(YOLODataset):
    """Reads labels and images from their own files only, and writes nothing beside them."""

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
        function, items = self.verify_args()
        with ThreadPool(NUM_THREADS) as pool:
            checked = pool.imap(function, items)
            total = len(self.im_files)
            for result in track(checked, f"Read {folder}", unit="image", total=total):
                label, _, found, _, _, message = self.result_to_label(result)
                labelled += found
                labels += [] if label is None else [label]
                messages += [message] if message else []
        if messages:
            LOGGER.info("\n".join(messages))
        if not labels:
            raise RuntimeError(f"no image can be read whose labels are in {folder}")
        if not labelled:
            if self.augment:
                raise ValueError(f"no label file in {folder}")
            LOGGER.warning(f"No labels found for {folder}")
        self.im_files = [label["im_file"] for label in labels]
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
        prefix=colorstr(f"{mode}: "),
        task=args.task,
        classes=args.classes,
        data=data,
    )
