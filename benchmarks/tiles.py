# SPDX-License-Identifier: AGPL-3.0-or-later
"""Cut a data set into tiles, as `tiling` of the node does with a frame: for runs on small inputs.

    python -m benchmarks.tiles aerial-cars/data.yaml --size 480 --classes car --output runs/tiles
      [--unlabelled rgb-unlabelled/images]

Of the training tiles without an object one in four stays; of the others, and of validation, all.
Of rare classes nothing can be measured: --classes says which stay.
From pictures without labels come as many tiles as there are training tiles, spread evenly.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import cv2
import numpy as np
import yaml

from drone_kd_training.data.dataset import (
    centre_and_size,
    image_paths,
    label_lines,
    load_data,
    read_sample,
    write_text,
)
from drone_kd_training.teachers.plan import Crops
from drone_kd_training.teachers.teaching_dataset import boxes_inside, views

EMPTY_EVERY = 4


def tiles(path: Path, image: np.ndarray, size: int):
    """Name, pixels, and window (x1, y1, x2, y2) in [0, 1] of the picture, of each of its tiles."""
    height, width = image.shape[:2]
    for _, pixels, window in views(image, Crops(size)):
        x1, y1 = round(window[0] * width), round(window[1] * height)
        yield f"{path.stem}-{y1:04d}-{x1:04d}", pixels, window


def main() -> None:
    """Write OUTPUT/data.yaml with its pictures and labels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="data.yaml in Ultralytics' format")
    parser.add_argument("--size", type=int, required=True, help="side of a tile in pixels")
    parser.add_argument("--classes", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--unlabelled", type=Path, help="folder of further pictures")
    a = parser.parse_args()
    data = load_data(a.data)
    kept = [data.names.index(name) for name in a.classes]
    written = dict.fromkeys(("train", "val"), 0)
    for split in written:
        for kind in ("images", "labels"):
            (a.output / kind / split).mkdir(parents=True)
        empty = 0
        for path in image_paths(getattr(data, split)):
            sample = read_sample(path, len(data.names))
            height, width = sample.image.shape[:2]
            boxes = sample.xyxy / np.array([width, height] * 2)
            table = np.concatenate([boxes, sample.class_ids[:, None]], axis=1)
            table = table[np.isin(sample.class_ids, kept)]
            for stem, pixels, window in tiles(path, sample.image, a.size):
                found = boxes_inside(table, window)
                if not len(found):
                    empty += 1
                    if split == "train" and empty % EMPTY_EVERY:
                        continue
                cv2.imwrite(str(a.output / "images" / split / f"{stem}.png"), pixels)
                ids = [kept.index(i) for i in found[:, 4]]
                lines = label_lines(ids, centre_and_size(found[:, :4]).clip(0, 1))
                write_text(a.output / "labels" / split / f"{stem}.txt", lines)
                written[split] += 1
        print(f"{split}: {written[split]} tiles")
    if a.unlabelled:
        (a.output / "unlabelled").mkdir()
        paths = image_paths(a.unlabelled)
        counts = [sum(1 for _ in tiles(p, cv2.imread(str(p)), a.size)) for p in paths]
        count = min(sum(counts), written["train"])
        chosen = {number * sum(counts) // count for number in range(count)}
        numbers = itertools.count()
        for path in paths:
            for stem, pixels, _ in tiles(path, cv2.imread(str(path)), a.size):
                if next(numbers) in chosen:
                    cv2.imwrite(str(a.output / "unlabelled" / f"{stem}.png"), pixels)
        print(f"unlabelled: {count} of {sum(counts)} tiles")
    content = {"train": "images/train", "val": "images/val", "names": dict(enumerate(a.classes))}
    write_text(a.output / "data.yaml", yaml.safe_dump(content, sort_keys=False))


if __name__ == "__main__":
    main()
