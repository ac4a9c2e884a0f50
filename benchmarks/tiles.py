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
from pathlib import Path

import cv2
import numpy as np
import yaml

from training.data import (
    centre_and_size,
    image_paths,
    label_lines,
    load_data,
    read_sample,
    write_text,
)
from training.frames import boxes_inside, spans

EMPTY_EVERY = 4


def windows(height: int, width: int, size: int) -> list[tuple[int, int, int, int]]:
    """x1, y1, x2, y2 in pixels of the tiles of a picture."""
    rows, columns = spans(height, size), spans(width, size)
    return [(x1, y1, x2, y2) for y1, y2 in rows for x1, x2 in columns]


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
            for x1, y1, x2, y2 in windows(height, width, a.size):
                relative = (x1 / width, y1 / height, x2 / width, y2 / height)
                found = boxes_inside(table, relative)
                if not len(found):
                    empty += 1
                    if split == "train" and empty % EMPTY_EVERY:
                        continue
                stem = f"{path.stem}-{y1:04d}-{x1:04d}"
                picture = a.output / "images" / split / f"{stem}.png"
                cv2.imwrite(str(picture), sample.image[y1:y2, x1:x2])
                ids = [kept.index(i) for i in found[:, 4]]
                lines = label_lines(ids, centre_and_size(found[:, :4]).clip(0, 1))
                write_text(a.output / "labels" / split / f"{stem}.txt", lines)
                written[split] += 1
        print(f"{split}: {written[split]} tiles")
    if a.unlabelled:
        (a.output / "unlabelled").mkdir()
        sizes = [(p, cv2.imread(str(p)).shape[:2]) for p in image_paths(a.unlabelled)]
        every = [(path, window) for path, shape in sizes for window in windows(*shape, a.size)]
        count = min(len(every), written["train"])
        for number in range(count):
            path, (x1, y1, x2, y2) = every[number * len(every) // count]
            picture = a.output / "unlabelled" / f"{path.stem}-{y1:04d}-{x1:04d}.png"
            cv2.imwrite(str(picture), cv2.imread(str(path))[y1:y2, x1:x2])
        print(f"unlabelled: {count} of {len(every)} tiles")
    content = {"train": "images/train", "val": "images/val", "names": dict(enumerate(a.classes))}
    write_text(a.output / "data.yaml", yaml.safe_dump(content, sort_keys=False))


if __name__ == "__main__":
    main()
