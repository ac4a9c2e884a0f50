# SPDX-License-Identifier: AGPL-3.0-or-later
"""Data set cut into tiles, as `tiling` of the node cuts a frame, for runs on small inputs.

    python -m benchmarks.tiles aerial-cars/data.yaml --size 480 --classes car --output runs/tiles
      [--unlabelled rgb-unlabelled/images] [--hold-out MOS]

One in four training tiles without an object is kept (--empty-every 1: all, for `drone-kd compare
--protocol few-labels`); all other tiles are. --classes selects the classes with enough objects to
measure. Unlabelled images give as many tiles as there are training
tiles, spread evenly. --hold-out: training images whose names begin so become the validation split,
in the place of the data set's own, to choose settings by flights that are not in training.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import yaml

from drone_kd_training.data.crops import Crops, boxes_inside, views
from drone_kd_training.data.dataset import (
    DataSet,
    centre_and_size,
    image_paths,
    label_lines,
    load_data,
    read_sample,
    write_text,
)


def tiles(
    path: Path, image: np.ndarray, size: int
) -> Iterator[tuple[str, np.ndarray, tuple[float, float, float, float]]]:
    """Yield name, pixels and window (x1, y1, x2, y2) in [0, 1] of each tile of an image."""
    height, width = image.shape[:2]
    for _, pixels, window in views(image, Crops(size)):
        assert pixels is not None  # of an image that was read
        x1, y1 = round(window[0] * width), round(window[1] * height)
        yield f"{path.stem}-{y1:04d}-{x1:04d}", pixels, window


def write_split(
    data: DataSet,
    split: str,
    paths: list[Path],
    kept: list[int],
    size: int,
    empty_every: int,
    output: Path,
) -> int:
    """Write the tiles of images with the labels of the kept classes; returns their number."""
    for kind in ("images", "labels"):
        (output / kind / split).mkdir(parents=True)
    written = empty = 0
    for path in paths:
        sample = read_sample(path, len(data.names))
        if sample is None:
            raise SystemExit(f"{path}: expected a readable image with labels")
        height, width = sample.image.shape[:2]
        boxes = sample.xyxy / np.array([width, height] * 2)
        table = np.concatenate([boxes, sample.class_ids[:, None]], axis=1)
        table = table[np.isin(sample.class_ids, kept)]
        for stem, pixels, window in tiles(path, sample.image, size):
            found = boxes_inside(table, window)
            if not len(found):
                empty += 1
                if split == "train" and empty % empty_every:
                    continue
            cv2.imwrite(str(output / "images" / split / f"{stem}.png"), pixels)
            ids = [kept.index(i) for i in found[:, 4]]
            lines = label_lines(ids, centre_and_size(found[:, :4]).clip(0, 1))
            write_text(output / "labels" / split / f"{stem}.txt", lines)
            written += 1
    return written


def split_paths(data: DataSet, hold_out: str | None) -> dict[str, list[Path]]:
    """Return the images of each split; see --hold-out."""
    train = list(image_paths(data.train))
    if hold_out is None:
        return {"train": train, "val": list(image_paths(data.val))}
    splits: dict[str, list[Path]] = {"train": [], "val": []}
    for path in train:
        splits["val" if path.name.startswith(hold_out) else "train"].append(path)
    if not all(splits.values()):
        raise SystemExit(
            f"--hold-out {hold_out}: expected some of {len(train)} training images to begin so, "
            f"got {len(splits['val'])}; correct it"
        )
    return splits


def write_unlabelled(folder: Path, most: int, size: int, output: Path) -> tuple[int, int]:
    """Write at most `most` tiles of a folder's images; returns their number and that of all."""
    output.mkdir()
    every = [
        (path, number)
        for path in image_paths(folder)
        for number, _ in enumerate(tiles(path, np.asarray(cv2.imread(str(path))), size))
    ]
    count = min(len(every), most)
    chosen = {every[number * len(every) // count] for number in range(count)}
    for path in dict.fromkeys(path for path, _ in every):
        cut = tiles(path, np.asarray(cv2.imread(str(path))), size)
        for number, (stem, pixels, _) in enumerate(cut):
            if (path, number) in chosen:
                cv2.imwrite(str(output / f"{stem}.png"), pixels)
    return count, len(every)


def main() -> None:
    """Write OUTPUT/data.yaml with its images and labels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="data.yaml in Ultralytics' format")
    parser.add_argument("--size", type=int, required=True, help="side of a tile in pixels")
    parser.add_argument("--classes", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--empty-every", type=int, default=4, metavar="N", help="of empty training tiles, one in N"
    )
    parser.add_argument("--hold-out", metavar="NAME", help="beginning of the names to validate by")
    parser.add_argument("--unlabelled", type=Path, help="folder of further images")
    a = parser.parse_args()
    data = load_data(a.data)
    kept = [data.names.index(name) for name in a.classes]
    written = {}
    for split, paths in split_paths(data, a.hold_out).items():
        written[split] = write_split(data, split, paths, kept, a.size, a.empty_every, a.output)
        print(f"{split}: {written[split]} tiles")
    if a.unlabelled:
        folder = a.output / "unlabelled"
        count, total = write_unlabelled(a.unlabelled, written["train"], a.size, folder)
        print(f"unlabelled: {count} of {total} tiles")
    content = {"train": "images/train", "val": "images/val", "names": dict(enumerate(a.classes))}
    write_text(a.output / "data.yaml", yaml.safe_dump(content, sort_keys=False))


if __name__ == "__main__":
    main()
