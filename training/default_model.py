# SPDX-License-Identifier: AGPL-3.0-or-later
"""Train the model that the package carries, and write it with its card.

    make default-model SHARED=path/to/shared        # python -m training.default_model --shared
    ... --output ...

``shared`` holds data/aerial-cars, data/hit-uav and data/rgb-unlabelled (the frames that the card
names) and weights/ with a COCO YOLOv8n to start from and a teacher for the unlabelled frames.
Labels of all sources are brought to one class list; a run that was interrupted goes on where it
was.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml
from tqdm import tqdm

import drone_kd
from drone_kd.detector import Detector
from training.backend import TorchBackend
from training.config import NO_TEACHER, Config
from training.data import Sample, image_paths, load_data, read_sample, write_text
from training.distill import distill
from training.evaluate import evaluate
from training.export import export
from training.generate import generate
from training.models import PACKAGED_MODELS, load_model
from training.report import format_score

CLASSES = ("person", "car", "truck", "bus", "bicycle")
# Every name that a source or the teacher uses -> ours. What is not named here is left out with
# its boxes.
SAME = {
    "person": "person",
    "pedestrian": "person",
    "people": "person",
    "car": "car",
    "van": "car",
    "truck": "truck",
    "other_vehicle": "truck",
    "bus": "bus",
    "minibus": "bus",
    "bicycle": "bicycle",
    "cyclist": "bicycle",
    "tricycle": "bicycle",
    "motor": "bicycle",
}
PSEUDO_CONFIDENCE = {
    "person": 0.55
}  # the teacher calls lamps and planters people: a higher bar than for the rest
PSEUDO_DEFAULT = 0.4
# Larger frames are reduced: more detail than the input of the network would only cost loading.
LONGEST_PX = 1280
ATTRIBUTION = (
    "aerial-cars-dataset: Yauhen Kharuzhy and the Minsk OpenStreetMap community (CC BY-SA), "
    "KIT AIS data set (CC BY 3.0); HIT-UAV: Suo et al., Scientific Data 10, 227, 2023 "
    "(CC BY 4.0); drone pictures: MaptimeBogota and angoca (public domain), OpenDroneMap (CC0), "
    "Andrew Zaborowski, OpenStreetMap-PL (CC BY 3.0), DroneTM, spwoodcock (CC BY 4.0)"
)
LICENCE = "AGPL-3.0"


@dataclass(frozen=True)
class Recipe:
    """How many frames of each source an epoch holds, and how long it trains."""

    procedural: int = 250
    hit_uav_step: int = 7
    aerial_cars_repeat: int = 1
    epochs: int = 3
    imgsz: int = 640
    seed: int = 0


def build_data(shared: Path, output: Path, recipe: Recipe) -> dict[str, Path]:
    """Write all sources with one class list; returns {"train": yaml, "<source>": yaml of its
    validation split}.
    """
    done = output / "sets.yaml"
    if done.is_file():
        return {
            name: Path(path)
            for name, path in yaml.safe_load(done.read_text(encoding="utf-8")).items()
        }
    shutil.rmtree(output, ignore_errors=True)
    lists: list[Path] = []
    sets: dict[str, Path] = {}
    procedural = generate(
        output / "drawn", train=recipe.procedural, val=100, imgsz=recipe.imgsz, seed=recipe.seed
    )
    sources = (
        ("procedural", procedural, 1, 1, False),
        ("aerial-cars", shared / "data/aerial-cars/data.yaml", 1, recipe.aerial_cars_repeat, True),
        ("hit-uav", shared / "data/hit-uav/data.yaml", recipe.hit_uav_step, 1, False),
    )
    for name, path, step, repeat, tiles in sources:
        dataset = load_data(path)
        for split in ("train", "val"):
            every = step if split == "train" else 1
            samples = _labelled(image_paths(getattr(dataset, split))[::every], dataset.names)
            folder = output / name / "images" / split
            written = _write(
                samples, folder, tiles=tiles and split == "train", title=f"{name} {split}"
            )
            if split == "train":
                lists += written * repeat
        sets[name] = _yaml(output / name / "data.yaml", "images/train", "images/val")
    teacher = TorchBackend(
        load_model(str(shared / "weights/yolov5su-visdrone10.pt"))[0], imgsz=1280
    )
    unlabelled = image_paths(shared / "data/rgb-unlabelled/images")
    pseudo = _pseudo_labelled(unlabelled, Detector(teacher, PSEUDO_DEFAULT, 0.7, 300))
    lists += _write(
        pseudo, output / "rgb" / "images" / "train", tiles=False, title="unlabelled frames"
    )
    write_text(output / "train.txt", "\n".join(str(p.resolve()) for p in lists) + "\n")
    sets = {"train": _yaml(output / "data.yaml", "train.txt", "aerial-cars/images/val"), **sets}
    write_text(
        done, yaml.safe_dump({name: str(path) for name, path in sets.items()}, sort_keys=False)
    )
    return sets


def _labelled(paths: list[Path], names: tuple[str, ...]):
    to_ours = [CLASSES.index(SAME[name]) if name in SAME else -1 for name in names]
    for path in paths:
        sample = read_sample(path, len(names))
        if sample is not None:
            ids = np.array([to_ours[i] for i in sample.class_ids], dtype=np.int64)
            yield Sample(path, sample.image, sample.xyxy[ids >= 0], ids[ids >= 0])


def _pseudo_labelled(paths: list[Path], teacher: Detector):
    names = [SAME.get(name) for name in teacher.backend.spec.classes]
    for path in paths:
        image = cv2.imread(str(path))
        found = teacher(image)
        ours = [names[i] for i in found.class_ids]
        keep = [
            name is not None and score >= PSEUDO_CONFIDENCE.get(name, PSEUDO_DEFAULT)
            for name, score in zip(ours, found.scores, strict=True)
        ]
        ids = [CLASSES.index(name) for name, kept in zip(ours, keep, strict=True) if kept]
        yield Sample(path, image, found.xyxy[keep], np.array(ids, dtype=np.int64))


def _write(samples, folder: Path, tiles: bool, title: str) -> list[Path]:
    """Write pictures and labels; with ``tiles`` the four quarters of large pictures, too."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = Path(str(folder).replace("images", "labels"))
    labels.mkdir(parents=True, exist_ok=True)
    written = []
    for sample in tqdm(samples, desc=title, unit="frame", leave=False):
        height, width = sample.image.shape[:2]
        windows = [(0, 0, width, height)]
        if tiles and max(width, height) > 1000:
            w, h = width // 2, height // 2
            windows += [(x, y, x + w, y + h) for x in (0, w) for y in (0, h)]
        for number, (x1, y1, x2, y2) in enumerate(windows):
            path = folder / f"{sample.path.stem}_{number}.jpg"
            boxes, kept = _crop(sample.xyxy, x1, y1, x2, y2)
            scale = min(1.0, LONGEST_PX / max(x2 - x1, y2 - y1))
            picture = cv2.resize(
                sample.image[y1:y2, x1:x2], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA
            )
            cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 92])
            boxes = boxes / np.array([x2 - x1, y2 - y1] * 2)
            rows = np.concatenate(
                [(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1
            )
            text = (
                f"{class_id} " + " ".join(f"{v:.6f}" for v in row)
                for class_id, row in zip(sample.class_ids[kept], rows, strict=True)
            )
            write_text(labels / f"{path.stem}.txt", "\n".join(text) + "\n")
            written.append(path)
    return written


def _crop(xyxy: np.ndarray, x1: int, y1: int, x2: int, y2: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes clipped to a window, relative to it, and which keep at least half of their area."""
    clipped = np.clip(xyxy, [x1, y1, x1, y1], [x2, y2, x2, y2])
    area, inside = (np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (xyxy, clipped))
    kept = inside > 0.5 * area
    return clipped[kept] - np.array([x1, y1, x1, y1]), kept


def _yaml(path: Path, train: str, val: str) -> Path:
    content = {"path": ".", "train": train, "val": val, "names": dict(enumerate(CLASSES))}
    write_text(path, yaml.safe_dump(content, sort_keys=False))
    return path


def card(sets: dict[str, dict], recipe: Recipe, cost: dict) -> str:
    """The model's card, as Markdown; ``sets``: name -> what `evaluate` says of its val split."""
    rows = []
    for name, m in sets.items():
        classes = m["per_class"].items()
        by_class = [f"{c} {format_score(s['ap50'])}" for c, s in classes if s["ap50"] is not None]
        scores = [format_score(m[key]) for key in ("map50_95", "map50", "ap_tiny")]
        cells = [f"{name}, {m['images']} frames", *scores, ", ".join(by_class)]
        rows.append("| " + " | ".join(cells))
    return CARD.format(
        classes=", ".join(CLASSES),
        parameters=f"{cost['parameters']:,}",
        gflops=cost["gflops"],
        rows=" |\n".join(rows) + " |",
        attribution=ATTRIBUTION,
        licence=LICENCE,
        **asdict(recipe),
    )


CARD = """# The default model

Written by `python -m training.default_model`; do not edit by hand.

`default.onnx`: YOLOv8n's backbone up to stride 16 with a head of two levels
(`training/models/aerial-nano.yaml`), {parameters} parameters, {gflops} GFLOPs at {imgsz}×{imgsz}.
Classes: {classes} (bicycle: any vehicle of two or three wheels; bus: minibuses, too).

| validation split | mAP50-95 | mAP50 | AP tiny (< 16 px) | AP50 by class |
|---|---|---|---|---|
{rows}

The figures are of `default.onnx` as it flies (`drone_kd.detector`), in percent; no flight is in
both the training and the validation split of a set.

Trained {epochs} epochs (seed {seed}) from a COCO checkpoint of YOLOv8n, on {procedural} procedural
frames; one in {hit_uav_step} of the training frames of HIT-UAV (thermal); the training frames of
aerial-cars and their quarters, {aerial_cars_repeat} × an epoch; and 98 drone pictures without
labels, labelled by a YOLOv5s that was trained on VisDrone.

Limits: a small and modest model, trained briefly on little. Not validated for any flight: measure
it on your own frames before anything depends on it. Thermal: the camera of HIT-UAV only, whose
"other_vehicle" was taken as truck. Objects of a few pixels are mostly missed. Some labels of the
unlabelled pictures are wrong, since a model made them.

Attribution: {attribution}.

Licence of the weights: {licence}, as they were trained with Ultralytics from one of its
checkpoints.
"""


def main(argv: list[str] | None = None) -> int:
    """Build the data, train, measure, export, write the card. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--shared", type=Path, required=True, help="folder with data/ and weights/"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/default"), help="(%(default)s)")
    parser.add_argument(
        "--models",
        type=Path,
        default=Path(drone_kd.__file__).parent / "models",
        help="where the model goes (%(default)s)",
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    recipe = Recipe()
    sets = build_data(arguments.shared, arguments.output / "data", recipe)
    run = arguments.output / "train"
    config = Config(
        data=str(sets["train"]),
        teacher=NO_TEACHER,
        student="aerial-nano.yaml",
        epochs=recipe.epochs,
        imgsz=recipe.imgsz,
        seed=recipe.seed,
        val=False,
        overrides={
            "pretrained": str(arguments.shared / "weights/yolov8n-coco.pt"),
            "optimizer": "AdamW",
            "lr0": 0.002,
            "warmup_epochs": 0.5,
            "close_mosaic": 1,
            "nbs": 16,
        },
    )
    metrics = distill(config, run, resume=(run / "config.yaml").is_file())
    model = arguments.models / "default.onnx"
    export(
        run / "best.pt",
        model,
        data=str(sets["aerial-cars"]),
        licence=LICENCE,
        attribution=ATTRIBUTION,
    )
    measured = {name: evaluate(model, path) for name, path in sets.items() if name != "train"}
    shutil.copyfile(run / "best.pt", PACKAGED_MODELS / "default.pt")  # where the demo starts
    write_text(arguments.models / "README.md", card(measured, recipe, metrics["student"]))
    print(model)
    return 0


if __name__ == "__main__":
    sys.exit(main())
