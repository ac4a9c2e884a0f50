# SPDX-License-Identifier: AGPL-3.0-or-later
"""Train the default model of the package, and write it with its model card.

    make default-model SHARED=path/to/shared
    python -m drone_kd_training.recipes.default_model --shared path/to/shared
    ... --thermal-teacher best.pt    # instead of training one on HIT-UAV

``shared`` holds data/ (aerial-cars, hit-uav, rgb-unlabelled, and unicamp-people, a development set
that is never trained on), weights/ (COCO's YOLOv8n and s, a YOLOv5su of VisDrone) and replay/. The
sources and teachers are in default_model.yaml. Each step leaves its result in --output; the same
command resumes an interrupted run.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

import drone_kd
from drone_kd.backends import Backend
from drone_kd.detector import Detector
from drone_kd.files import write_text
from drone_kd.parsing import read_json
from drone_kd.paths import parameter_defaults, selftest_image_path
from drone_kd.progress import track
from drone_kd_training.data.dataset import read_sample
from drone_kd_training.distillation.config import NO_TEACHER, Config
from drone_kd_training.evaluation.evaluate import IOU
from drone_kd_training.export.export import export
from drone_kd_training.export.golden_images import add_golden_images
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.models.published import save_checkpoint
from drone_kd_training.models.torch_backend import TorchBackend
from drone_kd_training.models.weight_interpolation import interpolate_weights
from drone_kd_training.recipes.default_model_data import (
    KINDS,
    TEST_SETS,
    Recipe,
    prepare,
    selection_images,
    write_test_set,
)
from drone_kd_training.recipes.default_model_figures import INPUT_PX, collect, measure
from drone_kd_training.recipes.model_card import Card, write_card
from drone_kd_training.recipes.runner import run_recipe, train
from drone_kd_training.teachers.fusion import count_right
from drone_kd_training.teachers.teaching_plan import Plan, Source, read_plan

PLAN = Path(__file__).with_name("default_model.yaml")
ATTRIBUTION = (
    "aerial-cars-dataset: Yauhen Kharuzhy and the Minsk OpenStreetMap community (CC BY-SA), "
    "KIT AIS data set (CC BY 3.0); HIT-UAV: Suo et al., Scientific Data 10, 227, 2023 "
    "(CC BY 4.0); drone pictures: MaptimeBogota and angoca (public domain), OpenDroneMap (CC0), "
    "Andrew Zaborowski, OpenStreetMap-PL (CC BY 3.0), DroneTM, spwoodcock (CC BY 4.0)"
)
LICENCE = "AGPL-3.0"
ANCESTRY = (
    "taught by a checkpoint trained on VisDrone, whose images are published for non-commercial "
    "use; for a commercial product, train your own model from other teachers"
)
# Candidates of the weight interpolation: share of the start in the weights.
ALPHAS = (0.0, 0.15, 0.3, 0.45, 0.6)
# Sources on whose training images the threshold is chosen.
THRESHOLD_SOURCES = ("hit-uav", "aerial-cars")
THRESHOLDS = np.arange(0.05, 0.8, 0.025)
# A class with fewer labels does not count for the choice of the threshold.
LABELS_NEEDED = 20


@dataclass(frozen=True)
class Folders:
    """Where the recipe reads and writes.

    Attributes:
        shared: data/, weights/ and replay/; see the module.
        output: intermediate results.
        models: for the model and its short card.
        docs: for the model card and its images.
    """

    shared: Path
    output: Path
    models: Path
    docs: Path


def build(
    folders: Folders,
    recipe: Recipe,
    thermal: Path | None = None,
    before: Path | None = None,
    plan_template: Path = PLAN,
) -> Path:
    """Train, interpolate, calibrate, export, measure and write the card; return the model.

    ``thermal``: teacher of thermal images; None trains one. ``before``: another .onnx that is
    measured for comparison. ``plan_template``: sources and teachers. Raises ExportError if the
    model does not pass the gates of the export, ValueError for input that cannot work.
    """
    shared, output = folders.shared.resolve(), folders.output.resolve()
    thermal = thermal.resolve() if thermal else train_thermal(shared, output / "thermal", recipe)
    prepare(shared, output / "work", recipe.procedural, recipe.seed)
    write_text(output / "teachers.yaml", fill_in(plan_template, shared, output / "work", thermal))
    start = save_start(shared / "weights/yolov8n-coco.pt", output / "start.pt")
    metrics = train(student_config(output / "teachers.yaml", start, recipe), output / "train")
    plan = read_plan(output / "teachers.yaml")
    trained = {path for source in plan.sources for path in source.train}
    chosen = output / "selection"
    selection = {n: write_test_set(shared, n, chosen / n, trained) for n in TEST_SETS}
    trained_model = output / "train" / "best.pt"
    alpha, interpolated, alphas = choose_alpha(trained_model, start, selection, output)
    best, threshold = calibrate(interpolated, plan, output)
    validation = output / "train" / "frames" / "val"
    model = folders.models / "default.onnx"
    data = str(validation / "aerial-cars" / "data.yaml")
    export(
        best,
        model,
        "fp16",
        data,
        INPUT_PX,
        licence=LICENCE,
        attribution=ATTRIBUTION,
        ancestry=ANCESTRY,
        golden=False,
    )
    # Of a public domain image: the file shows parts of it.
    add_golden_images(model, [selftest_image_path()])
    others = {} if before is None else {"previous model": before}
    others |= {teacher.name: teacher.weights for teacher in plan.teachers}
    others["COCO nano"] = shared / "weights/yolov8n-coco.pt"
    tests = output / "test_sets"
    test_sets = {n: write_test_set(shared, n, tests / n) for n in TEST_SETS}
    figures = collect(model, best, others, plan, test_sets, validation, shared, output / "figures")
    card = Card(plan, recipe, metrics, figures, alpha, alphas, threshold, ATTRIBUTION, LICENCE)
    write_card(card, model, folders.docs, folders.models)
    return model


def fill_in(plan_template: Path, shared: Path, work: Path, thermal: Path) -> str:
    """Return the sources and teachers with the paths of this machine."""
    text = plan_template.read_text(encoding="utf-8")
    return Template(text).substitute(shared=shared, work=work, thermal=thermal)


def student_config(plan: Path, student: Path, recipe: Recipe) -> Config:
    """Return the run that distils ``student`` from the sources and teachers of ``plan``."""
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
    """Train COCO's YOLOv8s on HIT-UAV; about 40 minutes on two cores."""
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
    train(config, output)
    return output / "best.pt"


def save_start(coco: Path, output: Path) -> Path:
    """Save COCO's checkpoint with its motorcycles renamed to two-wheelers.

    When the list of classes changes, Ultralytics keeps the weights of a class of the same name,
    and initialises all others.
    """
    if not output.is_file():
        model, _ = load_model(str(coco))
        names = {"motorcycle": "two-wheeler"}
        model.names = {i: names.get(name, name) for i, name in model.names.items()}
        _save({"model": model, "train_args": {}}, output)
    return output


def choose_alpha(
    checkpoint: Path, start: Path, selection: dict[str, Path], output: Path
) -> tuple[float, Path, dict[str, dict[str, dict[str, Any]]]]:
    """Choose the alpha of the weight interpolation: the best mean AP50 over ``selection``.

    So what is hardly taught is not forgotten. ``selection``: name -> data.yaml of images that
    alpha is chosen on. ``output``: folder for the interpolated checkpoints. Returns alpha, its
    checkpoint, and the results of `evaluate` by alpha and name.
    """
    checkpoints = {alpha: output / "interpolated" / f"{alpha}.pt" for alpha in ALPHAS}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for alpha, path in track(checkpoints.items(), "Interpolate with the start", "alpha"):
        if not path.is_file():
            interpolate_weights(checkpoint, start, alpha, path)
        found[str(alpha)] = {
            name: measure(path, data, output / "figures", classes=KINDS)
            for name, data in selection.items()
        }
    best = max(ALPHAS, key=lambda a: np.mean([f["map50"] for f in found[str(a)].values()]))
    return best, checkpoints[best], found


def calibrate(checkpoint: Path, plan: Plan, output: Path) -> tuple[Path, dict[str, Any]]:
    """Shift the class logits so that the best threshold becomes the package's default.

    The best threshold has the highest mean F1 over sources and classes. A shift of all logits
    changes neither their order nor any AP. Returns the checkpoint, and what `choose_threshold`
    returned.
    """
    saved, result = output / "calibrated.pt", output / "threshold.json"
    if not result.is_file():
        chosen = choose_threshold(TorchBackend(load_model(str(checkpoint))[0], INPUT_PX), plan)
        model: Any = load_model(str(checkpoint))[0]  # the backend has fused the other one
        default = parameter_defaults("detector.yaml")["confidence"]
        shift = _logit(default) - _logit(chosen["threshold"])
        for branch in model.model[-1].cv3:
            branch[-1].bias.data += shift
        model.args = {"imgsz": INPUT_PX}
        # Half precision, as Ultralytics keeps its checkpoints.
        _save({"model": model.half(), "train_args": {"imgsz": INPUT_PX}}, saved)
        write_text(result, json.dumps(chosen, indent=1))
    return saved, read_json(result)


def choose_threshold(backend: Backend, plan: Plan) -> dict[str, Any]:
    """Return the threshold of the best mean F1: "threshold", "f1", "f1_by_class"."""
    detector = Detector(backend, float(THRESHOLDS[0]), IOU, 300)
    curves: dict[str, np.ndarray] = {}
    for source in (s for name in THRESHOLD_SOURCES for s in plan.sources if s.name == name):
        counts = _count_by_threshold(detector, source, plan.names)
        for c, label in enumerate(plan.names):
            if counts[c, 0, 2] >= LABELS_NEEDED:
                curves[f"{source.name} {label}"] = 2 * counts[c, :, 0] / counts[c, :, 1:].sum(-1)
    mean = np.mean(list(curves.values()), axis=0)
    best = int(mean.argmax())
    threshold, f1 = round(float(THRESHOLDS[best]), 3), round(float(mean[best]), 4)
    by_class = {name: round(float(curve[best]), 4) for name, curve in curves.items()}
    return {"threshold": threshold, "f1": f1, "f1_by_class": by_class}


def _count_by_threshold(detector: Detector, source: Source, names: tuple[str, ...]) -> np.ndarray:
    """Count (classes, thresholds, 3): correct detections, all detections, labels."""
    ours = {name: names.index(student) for name, student in source.classes.items()}
    to_student = np.array([ours.get(name, -1) for name in source.names])
    counts = np.zeros((len(names), len(THRESHOLDS), 3))
    images = selection_images(source.train[0].parent, set(source.train))
    for path in track(images, f"Choose a threshold on {source.name}", "image"):
        sample = read_sample(path, len(source.names))
        if sample is None:
            continue
        found = detector(sample.image)
        ids = to_student[sample.class_ids]
        truth = np.column_stack([sample.xyxy, ids])[ids >= 0]
        table = np.column_stack([found.xyxy, found.scores, found.class_ids])
        for c in map(names.index, source.labelled):
            labels = (truth[:, 4] == c).sum()
            for k, threshold in enumerate(THRESHOLDS):
                counts[c, k] += *count_right(table, truth, c, threshold), labels
    return counts


def _logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


def _save(checkpoint: dict[str, Any], path: Path) -> None:
    save_checkpoint(checkpoint, path)


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments and build; return the exit code."""
    package = Path(drone_kd.__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--shared", type=Path, required=True, help="folder with data/, weights/ and replay/")
    add("--output", type=Path, default=Path("runs/default"), help="(default: %(default)s)")
    teacher = "detector of HIT-UAV's classes (default: train one, 40 minutes)"
    add("--thermal-teacher", type=Path, metavar="best.pt", help=teacher)
    add("--before", type=Path, metavar="MODEL.onnx", help="a model to measure for comparison")
    add("--models", type=Path, default=package / "models", help="for the model (%(default)s)")
    add("--docs", type=Path, default=package.parent / "docs", help="for the card (%(default)s)")
    a = parser.parse_args(argv)
    folders = Folders(a.shared, a.output, a.models, a.docs)
    return run_recipe(lambda: print(build(folders, Recipe(), a.thermal_teacher, a.before)))


if __name__ == "__main__":
    sys.exit(main())
