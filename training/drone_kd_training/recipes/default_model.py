# SPDX-License-Identifier: AGPL-3.0-or-later
"""Train the model that the package carries, and write it with its card.

    make default-model SHARED=path/to/shared
    python -m drone_kd_training.recipes.default_model --shared path/to/shared
    ... --thermal-teacher best.pt    # instead of training one on HIT-UAV

``shared`` holds data/ (aerial-cars, hit-uav, rgb-unlabelled, and for measuring alone
unicamp-people), weights/ (COCO's YOLOv8n and s, a YOLOv5su of VisDrone) and replay/. Which frames
and which teachers teach what is in default_model.yaml. Each step leaves its result in --output and
is not done again; a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

import cv2
import numpy as np
import torch
import yaml
from tqdm import tqdm

import drone_kd
from drone_kd.backends import open_backend
from drone_kd.detector import Detector
from drone_kd.files import atomic_file, atomic_folder, write_text
from drone_kd.paths import parameter_defaults
from drone_kd_training.data.dataset import (
    centre_and_size,
    image_paths,
    label_lines,
    load_data,
    read_sample,
)
from drone_kd_training.data.generate import generate
from drone_kd_training.distillation.config import NO_TEACHER, Config
from drone_kd_training.distillation.distill import distill
from drone_kd_training.evaluation.evaluate import IOU, evaluate
from drone_kd_training.export.export import ExportError, export
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.models.torch_backend import TorchBackend
from drone_kd_training.models.weight_interpolation import interpolate_weights
from drone_kd_training.recipes.model_card import write_card
from drone_kd_training.teachers.fusion import count_right
from drone_kd_training.teachers.plan import Plan, read_plan
from drone_kd_training.teachers.prediction_cache import file_hash

PLAN = Path(__file__).with_name("default_model.yaml")
ATTRIBUTION = (
    "aerial-cars-dataset: Yauhen Kharuzhy and the Minsk OpenStreetMap community (CC BY-SA), "
    "KIT AIS data set (CC BY 3.0); HIT-UAV: Suo et al., Scientific Data 10, 227, 2023 "
    "(CC BY 4.0); drone pictures: MaptimeBogota and angoca (public domain), OpenDroneMap (CC0), "
    "Andrew Zaborowski, OpenStreetMap-PL (CC BY 3.0), DroneTM, spwoodcock (CC BY 4.0)"
)
LICENCE = "AGPL-3.0"
INPUT_PX = 640
# Pictures of rgb-unlabelled by the beginning of their names. One of caliterra shows a car, and
# stays out; lewis stays out altogether: no alarm in it can have been trained away.
RGB_SOURCES = {
    "bogota-niza": ("bogota-niza",),
    "chia-slanted": ("chia-aqua_0294", "chia-aqua_03"),
    "chia-aqua": ("chia-aqua_00", "chia-aqua_01", "chia-aqua_0211"),
    "caliterra": ("caliterra",),
    "elsewhere": ("boruszyn", "freetown", "agung"),
}
NOT_EMPTY = ("caliterra_9412",)
EMPTY = {
    "lewis (not trained on)": ("lewis_4196", "lewis_4260", "lewis_4344", "lewis_4348"),
    "caliterra (trained on)": ("caliterra_9354", "caliterra_9401", "caliterra_9407",
                               "caliterra_9430"),
}  # fmt: skip
HOVER = "minsk_DJI_0005_seq.mp4"
# The grounds on which models are compared: a set, and what its names are taken together to.
VEHICLES = dict.fromkeys(("car", "van", "truck", "bus", "minibus", "other_vehicle"), "vehicle")
KINDS = {
    **VEHICLES,
    **dict.fromkeys(("person", "pedestrian", "people"), "person"),
    **dict.fromkeys(("two-wheeler", "bicycle", "motorcycle", "motor", "tricycle", "cyclist"),
                    "two-wheeler"),
}  # fmt: skip
GROUNDS = ("hit-uav", "aerial-cars", "unicamp-people")
# How much of the start the model may keep.
SHARES = (0.0, 0.15, 0.3, 0.45, 0.6)
# Frames on which the share and the threshold are chosen: of HIT-UAV's training flights those
# between the ones trained on, of aerial-cars' the ones trained on (there are no others), of
# unicamp-people the training flight, which nothing was trained on.
CHOOSING_FRAMES = 150
# A class with fewer labels there has no say.
LABELS_NEEDED = 20


@dataclass(frozen=True)
class Recipe:
    """How long which part trains; ``overrides`` as `Config` has them, of the student."""

    procedural: int = 250
    thermal_epochs: int = 8
    thermal_imgsz: int = 320
    epochs: int = 6
    imgsz: int = 320
    batch: int = 8
    seed: int = 0
    balance: float = 0.5
    overrides: dict = field(
        default_factory=lambda: {
            "optimizer": "AdamW",
            "lr0": 0.0003,
            "lrf": 0.05,
            "cos_lr": True,
            "warmup_epochs": 0.2,
            "nbs": 8,
            "mosaic": 0.7,
            "close_mosaic": 0,
            "flipud": 0.3,
        }
    )


def build(
    shared: Path,
    output: Path,
    models: Path,
    docs: Path,
    recipe: Recipe,
    thermal: Path | None = None,
    before: Path | None = None,
    plan_template: Path = PLAN,
) -> Path:
    """Train, choose the threshold, export, measure, write the card; returns the model.

    Args:
        shared: see the module.
        output: folder of the work.
        models, docs: where model and card go.
        recipe: how long.
        thermal: a teacher of thermal frames; None: one is trained.
        before: another model.onnx that is measured with the others.
        plan_template: the sources and teachers.
    """
    shared, output = shared.resolve(), output.resolve()
    thermal = thermal.resolve() if thermal else train_thermal(shared, output / "thermal", recipe)
    prepare(shared, output / "work", recipe)
    text = fill_in(plan_template, shared, output / "work", thermal)
    write_text(output / "teachers.yaml", text)
    student = start(shared / "weights/yolov8n-coco.pt", output / "start.pt")
    run = output / "train"
    config = student_config(output / "teachers.yaml", student, recipe)
    distill(config, run, resume=(run / "config.yaml").is_file())
    plan = read_plan(output / "teachers.yaml")
    seen = {path for source in plan.sources for path in source.train}
    choosing = {
        name: write_ground(shared, name, output / "choosing" / name, seen) for name in GROUNDS
    }
    share, blended, shares = choose_share(run / "best.pt", student, choosing, output)
    best, chosen = calibrate(blended, plan, output)
    model = models / "default.onnx"
    val = run / "frames" / "val"
    grounds = {name: write_ground(shared, name, output / "grounds" / name) for name in GROUNDS}
    export(
        best,
        model,
        precision="fp16",
        imgsz=INPUT_PX,
        data=str(val / "aerial-cars" / "data.yaml"),
        licence=LICENCE,
        attribution=ATTRIBUTION,
    )
    candidates = {"default.onnx": model}
    if before is not None:
        candidates["the one before"] = before
    candidates |= {t.name: t.weights for t in plan.teachers}
    candidates["COCO nano"] = shared / "weights/yolov8n-coco.pt"
    times = relative_times(best, {t.name: t.weights for t in plan.teachers})
    kept = output / "figures"
    figures = {
        name: {
            ground: measure(path, data, kept, classes=KINDS) for ground, data in grounds.items()
        }
        for name, path in tqdm(candidates.items(), desc="measuring", unit="model")
    }
    figures["default.onnx, tiling auto"] = {
        ground: measure(model, data, kept, classes=KINDS, tiling="auto")
        for ground, data in tqdm(grounds.items(), desc="with tiles", unit="ground")
    }
    by_source = {
        s.name: measure(model, val / s.name / "data.yaml", kept, only=s.labelled)
        for s in tqdm([s for s in plan.sources if s.val], desc="by class", unit="source")
    }
    alarms = count_alarms(model, shared, parameter_defaults("detector.yaml")["confidence"])
    write_card(
        docs,
        models,
        plan=plan,
        recipe=recipe,
        metrics=json.loads((run / "metrics.json").read_text(encoding="utf-8")),
        figures=figures,
        by_source=by_source,
        alarms=alarms,
        times=times,
        shares=shares,
        share=share,
        threshold=chosen,
        model=model,
        pictures=shared / "data/rgb-unlabelled/images",
        attribution=ATTRIBUTION,
        licence=LICENCE,
    )
    return model


def fill_in(plan_template: Path, shared: Path, work: Path, thermal: Path) -> str:
    """The sources and teachers with the paths of this machine."""
    text = plan_template.read_text(encoding="utf-8")
    return Template(text).substitute(shared=shared, work=work, thermal=thermal)


def student_config(plan: Path, student: Path, recipe: Recipe) -> Config:
    """The run that distils ``student`` from the sources and teachers of ``plan``."""
    return Config(
        data="",
        teacher="",
        teachers=str(plan),
        student=str(student),
        epochs=recipe.epochs,
        imgsz=recipe.imgsz,
        batch=recipe.batch,
        seed=recipe.seed,
        terms=("class", "box"),
        balance=recipe.balance,
        val=False,
        overrides=recipe.overrides,
    )


def train_thermal(shared: Path, output: Path, recipe: Recipe) -> Path:
    """A YOLOv8s that knows HIT-UAV, from COCO's; about 40 minutes on two cores."""
    config = Config(
        data=str(shared / "data/hit-uav/data.yaml"),
        teacher=NO_TEACHER,
        student=str(shared / "weights/yolov8s-coco.pt"),
        epochs=recipe.thermal_epochs,
        imgsz=recipe.thermal_imgsz,
        batch=8,
        seed=recipe.seed,
        fraction=0.5,
        val=False,
        overrides={"optimizer": "AdamW", "lr0": 0.001, "warmup_epochs": 0.5, "nbs": 8,
                   "mosaic": 0, "close_mosaic": 0},
    )  # fmt: skip
    distill(config, output, resume=(output / "config.yaml").is_file())
    return output / "best.pt"


def prepare(shared: Path, work: Path, recipe: Recipe) -> None:
    """What default_model.yaml names below $work: lists, frames of a video, drawn frames."""
    generate(work / "procedural", train=recipe.procedural, val=60, imgsz=640, seed=recipe.seed)
    pictures = image_paths(shared / "data/rgb-unlabelled/images")
    for name, beginnings in RGB_SOURCES.items():
        own = [p for p in pictures if p.name.startswith(beginnings) and p.stem not in NOT_EMPTY]
        write_text(work / f"{name}.txt", "".join(f"{path}\n" for path in own))
    folder = work / "replay"
    if not folder.is_dir():
        with atomic_folder(folder) as temporary:
            video = cv2.VideoCapture(str(shared / "replay" / HOVER))
            number = 0
            while True:
                known, frame = video.read()
                if not known:
                    break
                cv2.imwrite(str(temporary / f"{number:04d}.png"), frame)
                number += 1


def start(coco: Path, output: Path) -> Path:
    """COCO's checkpoint with one class called as ours: a class of the same name is kept by
    Ultralytics when the list of classes changes, and all others start anew.
    """
    if not output.is_file():
        model, _ = load_model(str(coco))
        names = {"motorcycle": "two-wheeler"}
        model.names = {i: names.get(name, name) for i, name in model.names.items()}
        with atomic_file(output) as temporary:
            torch.save({"model": model, "train_args": {}}, temporary)
    return output


def choose_share(
    checkpoint: Path, start: Path, grounds: dict[str, Path], output: Path
) -> tuple[float, Path, dict[str, dict[str, dict]]]:
    """How much of the start the weights keep (see `interpolate_weights`): of `SHARES` the one with
    the best mean AP50 over ``grounds``, so that what is hardly taught is not forgotten.

    Returns:
        The share, its checkpoint, and what `evaluate` says by share and ground.
    """
    files, found = {}, {}
    for share in tqdm(SHARES, desc="blending with the start", unit="share"):
        files[share] = output / "blends" / f"{share}.pt"
        if not files[share].is_file():
            interpolate_weights(checkpoint, start, share, files[share])
        found[str(share)] = {
            name: measure(files[share], data, output / "figures", classes=KINDS)
            for name, data in grounds.items()
        }
    best = max(SHARES, key=lambda s: np.mean([f["map50"] for f in found[str(s)].values()]))
    return best, files[best], found


def choosing_frames(folder: Path, seen: set[Path]) -> list[Path]:
    """Of training frames those on which something is chosen: see `CHOOSING_FRAMES`."""
    frames = image_paths(folder)
    between = [path for path in frames if path not in seen] or frames
    return between[:: max(1, len(between) // CHOOSING_FRAMES)]


def calibrate(checkpoint: Path, plan: Plan, output: Path) -> tuple[Path, dict]:
    """Move the scores so that the best threshold is the package's default.

    Best: the mean over sources and classes of F1. What is added to all logits changes neither
    their order nor any AP.

    Returns:
        The checkpoint, and what was found: "threshold", "f1", "f1_by_class".
    """
    target = parameter_defaults("detector.yaml")["confidence"]
    saved, found_file = output / "calibrated.pt", output / "threshold.json"
    if not found_file.is_file():
        model, _ = load_model(str(checkpoint))
        found = choose_threshold(TorchBackend(model, INPUT_PX), plan)
        model, _ = load_model(str(checkpoint))
        threshold = found["threshold"]
        shift = np.log(target / (1 - target)) - np.log(threshold / (1 - threshold))
        for branch in model.model[-1].cv3:
            branch[-1].bias.data += float(shift)
        model.args = {"imgsz": INPUT_PX}
        with atomic_file(saved) as temporary:
            # Half precision, as Ultralytics keeps its checkpoints.
            torch.save({"model": model.half(), "train_args": {"imgsz": INPUT_PX}}, temporary)
        write_text(found_file, json.dumps(found, indent=1))
    return saved, json.loads(found_file.read_text(encoding="utf-8"))


def choose_threshold(backend, plan: Plan) -> dict:
    """See `calibrate`."""
    grid = np.arange(0.05, 0.8, 0.025)
    detector = Detector(backend, float(grid[0]), IOU, 300)
    curves: dict[str, np.ndarray] = {}
    for name in ("hit-uav", "aerial-cars"):
        source = next(s for s in plan.sources if s.name == name)
        ours = np.array(
            [
                plan.names.index(source.classes[n]) if n in source.classes else -1
                for n in source.names
            ]
        )
        counts = np.zeros((len(plan.names), len(grid), 3))  # right, found, there
        frames = choosing_frames(source.train[0].parent, set(source.train))
        for path in tqdm(frames, desc=f"threshold on {name}", leave=False):
            sample = read_sample(path, len(source.names))
            if sample is None:
                continue
            found = detector(sample.image)
            ids = ours[sample.class_ids]
            truth = np.concatenate([sample.xyxy, ids[:, None]], axis=1)[ids >= 0]
            table = np.concatenate(
                [found.xyxy, found.scores[:, None], found.class_ids[:, None]], axis=1
            )
            for label in source.labelled:
                c = plan.names.index(label)
                for k, threshold in enumerate(grid):
                    right, total = count_right(table, truth, c, threshold)
                    counts[c, k] += right, total, (truth[:, 4] == c).sum()
        for c, label in enumerate(plan.names):
            if counts[c, 0, 2] >= LABELS_NEEDED:
                curves[f"{name} {label}"] = 2 * counts[c, :, 0] / counts[c, :, 1:].sum(-1)
    mean = np.mean(list(curves.values()), axis=0)
    best = int(mean.argmax())
    return {
        "threshold": round(float(grid[best]), 3),
        "f1": round(float(mean[best]), 4),
        "f1_by_class": {name: round(float(curve[best]), 4) for name, curve in curves.items()},
    }


def write_ground(shared: Path, name: str, folder: Path, seen: set[Path] | None = None) -> Path:
    """A validation split with its classes taken together: person, two-wheeler, vehicle.

    ``seen``: what was trained on; given, frames of the training split on which something is chosen
    are taken instead.
    """
    data = load_data(shared / "data" / name / "data.yaml")
    kinds = tuple(dict.fromkeys(KINDS[n] for n in data.names))
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    frames = image_paths(data.val) if seen is None else choosing_frames(data.train, seen)
    for path in frames:
        (folder / "images" / path.name).symlink_to(path)
        sample = read_sample(path, len(data.names))
        height, width = sample.image.shape[:2]
        ids = (kinds.index(KINDS[data.names[i]]) for i in sample.class_ids)
        lines = label_lines(ids, centre_and_size(sample.xyxy) / ([width, height] * 2))
        write_text(folder / "labels" / f"{path.stem}.txt", lines)
    content = {"train": "images", "val": "images", "names": dict(enumerate(kinds))}
    write_text(folder / "data.yaml", yaml.safe_dump(content, sort_keys=False))
    return folder / "data.yaml"


def measure(
    model: Path,
    data: Path,
    folder: Path,
    only: tuple[str, ...] = (),
    classes: dict[str, str] | None = None,
    tiling: str = "off",
) -> dict:
    """What `evaluate` says of a model at 640 px; kept in ``folder``, by the model's content."""
    key = f"{file_hash(model)[:12]}-{data.parent.parent.name}-{data.parent.name}"
    key += f"{'-kinds' if classes else ''}{'-tiles' if tiling != 'off' else ''}"
    kept = folder / f"{key}.json"
    if not kept.is_file():
        size = None if model.suffix == ".onnx" else INPUT_PX
        found = evaluate(model, data, imgsz=size, tiling=tiling, only=only, classes=classes)
        write_text(kept, json.dumps(found, indent=1))
    return json.loads(kept.read_text(encoding="utf-8"))


def relative_times(student: Path, teachers: dict[str, Path], rounds: int = 15) -> dict[str, float]:
    """How many times as long as the student each teacher takes for a frame of 640 px: medians of
    interleaved runs in PyTorch on this machine.
    """
    backends = {
        name: TorchBackend(load_model(str(path))[0], INPUT_PX)
        for name, path in {"": student, **teachers}.items()
    }
    frame = np.zeros((1, INPUT_PX, INPUT_PX, 3), np.uint8)
    seconds: dict[str, list[float]] = {name: [] for name in backends}
    for _ in range(rounds):
        for name, backend in backends.items():
            started = time.perf_counter()
            backend.infer(frame)
            seconds[name].append(time.perf_counter() - started)
    return {name: float(np.median(seconds[name]) / np.median(seconds[""])) for name in teachers}


def count_alarms(model: Path, shared: Path, confidence: float) -> dict[str, tuple[int, int]]:
    """False alarms on pictures without objects: {which: (pictures, alarms)}."""
    defaults = parameter_defaults("detector.yaml")
    detector = Detector(
        open_backend(model, runtime="onnxruntime"), confidence, defaults["iou"], 300
    )
    folder = shared / "data/rgb-unlabelled/images"
    return {
        which: (
            len(stems),
            sum(len(detector(cv2.imread(str(folder / f"{stem}.jpg")))) for stem in stems),
        )
        for which, stems in EMPTY.items()
    }


def main(argv: list[str] | None = None) -> int:
    """Read the arguments and build. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--shared", type=Path, required=True, help="folder with data/, weights/ and replay/"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/default"), help="(%(default)s)")
    parser.add_argument(
        "--thermal-teacher",
        type=Path,
        metavar="best.pt",
        help="a detector of HIT-UAV's classes (default: one is trained, 40 minutes)",
    )
    parser.add_argument(
        "--before", type=Path, metavar="MODEL.onnx", help="a model to measure with the others"
    )
    package = Path(drone_kd.__file__).parent
    parser.add_argument(
        "--models",
        type=Path,
        default=package / "models",
        help="where the model goes (%(default)s)",
    )
    parser.add_argument(
        "--docs", type=Path, default=package.parent / "docs", help="for the card (%(default)s)"
    )
    a = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        print(build(a.shared, a.output, a.models, a.docs, Recipe(), a.thermal_teacher, a.before))
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from there", file=sys.stderr)
        return 130
    except (ExportError, ValueError, FileNotFoundError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
