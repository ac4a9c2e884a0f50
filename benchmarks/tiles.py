# SPDX-License-Identifier: AGPL-3.0-or-later
"""Cut a data set into tiles, as `tiling` of the node does with a frame: for runs on small inputs.

    python -m benchmarks.tiles aerial-cars/data.yaml --size 480 --classes car --output runs/tiles

Of the training tiles without an object one in four stays; of the others, and of validation, all.
Of rare classes nothing can be measured: --classes says which stay.
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


def main() -> None:
    """Write OUTPUT/data.yaml with its pictures and labels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="data.yaml in Ultralytics' format")
    parser.add_argument("--size", type=int, required=True, help="side of a tile in pixels")
    parser.add_argument("--classes", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--output", type=Path, required=True)
    a = parser.parse_args()
    data = load_data(a.data)
    kept = [data.names.index(name) for name in a.classes]
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (a.output / kind / split).mkdir(parents=True)
        empty = written = 0
        for path in image_paths(getattr(data, split)):
            sample = read_sample(path, len(data.names))
            height, width = sample.image.shape[:2]
            boxes = sample.xyxy / np.array([width, height] * 2)
            table = np.concatenate([boxes, sample.class_ids[:, None]], axis=1)
            table = table[np.isin(sample.class_ids, kept)]
            for y1, y2 in spans(height, a.size):
                for x1, x2 in spans(width, a.size):
                    window = (x1 / width, y1 / height, x2 / width, y2 / height)
                    found = boxes_inside(table, window)
                    if not len(found):
                        empty += 1
                        if split == "train" and empty % EMPTY_EVERY:
                            continue
                    stem = f"{path.stem}-{y1:04d}-{x1:04d}"
                    picture = a.output / "images" / split / f"{stem}.png"
                    cv2.imwrite(str(picture), sample.image[y1:y2, x1:x2])
                    lines = label_lines(
                        [kept.index(i) for i in found[:, 4]],
                        centre_and_size(found[:, :4]).clip(0, 1),
                    )
                    write_text(a.output / "labels" / split / f"{stem}.txt", lines)
                    written += 1
        print(f"{split}: {written} tiles")
    content = {"train": "images/train", "val": "images/val", "names": dict(enumerate(a.classes))}
    write_text(a.output / "data.yaml", yaml.safe_dump(content, sort_keys=False))


if __name__ == "__main__":
    main()
