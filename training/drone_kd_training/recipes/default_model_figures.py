# SPDX-License-Identifier: AGPL-3.0-or-later
"""Figures of the default model's card: scores on test sets, teachers' speed, false alarms."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drone_kd.backends import open_backend
from drone_kd.detector import Detector
from drone_kd.files import write_text
from drone_kd.media.image_files import read_image
from drone_kd.parsing import read_json
from drone_kd.paths import parameter_defaults
from drone_kd.progress import track
from drone_kd_training.evaluation.evaluate import evaluate
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.models.torch_backend import TorchBackend
from drone_kd_training.recipes.default_model_data import EMPTY, KINDS, UNLABELLED
from drone_kd_training.teachers.prediction_cache import file_hash
from drone_kd_training.teachers.teaching_plan import Plan

INPUT_PX = 640


@dataclass(frozen=True)
class Figures:
    """Everything that was measured of a finished model.

    Attributes:
        models: name of a model -> test set -> result of `evaluate`.
        by_source: source of the plan -> result of `evaluate`, by the model's own classes.
        alarms: images -> (number of images, false alarms).
        times: teacher -> its time per image, as a multiple of the student's.
    """

    models: dict[str, dict[str, dict[str, Any]]]
    by_source: dict[str, dict[str, Any]]
    alarms: dict[str, tuple[int, int]]
    times: dict[str, float]


def collect(
    model: Path,
    checkpoint: Path,
    others: Mapping[str, Path],
    plan: Plan,
    test_sets: Mapping[str, Path],
    validation: Path,
    shared: Path,
    cache: Path,
) -> Figures:
    """Measure a finished model and those that it is compared with.

    ``checkpoint``: what ``model`` was exported from. ``others``: name -> model to compare with.
    ``test_sets``: name -> data.yaml of `default_model_data.write_test_set`. ``validation``: folder
    with the validation split of each source. ``shared``: folder with data/. ``cache``: folder for
    results of `measure`.
    """
    teachers = {teacher.name: teacher.weights for teacher in plan.teachers}
    models = {
        name: {key: measure(path, data, cache, classes=KINDS) for key, data in test_sets.items()}
        for name, path in track({model.name: model, **others}.items(), "Compare", "model")
    }
    models[f"{model.name}, tiling auto"] = {
        key: measure(model, data, cache, classes=KINDS, tiling="auto")
        for key, data in track(test_sets.items(), "Evaluate with tiles", "test set")
    }
    by_source = {
        s.name: measure(model, validation / s.name / "data.yaml", cache, only=s.labelled)
        for s in track([s for s in plan.sources if s.val], "Evaluate by class", "source")
    }
    alarms = count_false_alarms(model, shared)
    return Figures(models, by_source, alarms, relative_times(checkpoint, teachers))


def measure(
    model: Path,
    data: Path,
    cache: Path,
    only: tuple[str, ...] = (),
    classes: Mapping[str, str] | None = None,
    tiling: str = "off",
) -> dict[str, Any]:
    """Return what `evaluate` says of a model at 640 px; cached by the model's content."""
    key = f"{file_hash(model)[:12]}-{data.parent.parent.name}-{data.parent.name}"
    key += f"{'-kinds' if classes else ''}{'-tiles' if tiling != 'off' else ''}"
    cached = cache / f"{key}.json"
    if not cached.is_file():
        size = None if model.suffix == ".onnx" else INPUT_PX
        scores = evaluate(model, data, imgsz=size, tiling=tiling, only=only, classes=classes)
        write_text(cached, json.dumps(scores, indent=1))
    return read_json(cached)


def relative_times(
    student: Path, teachers: Mapping[str, Path], rounds: int = 15
) -> dict[str, float]:
    """Return the time per 640 px image of each teacher, as a multiple of the student's.

    Medians of interleaved forward passes in PyTorch on this machine.
    """
    paths = {"": student, **teachers}
    backends = {n: TorchBackend(load_model(str(p))[0], INPUT_PX) for n, p in paths.items()}
    image = np.zeros((1, INPUT_PX, INPUT_PX, 3), np.uint8)
    seconds: dict[str, list[float]] = {name: [] for name in backends}
    for _ in range(rounds):
        for name, backend in backends.items():
            started = time.perf_counter()
            backend.infer(image)
            seconds[name].append(time.perf_counter() - started)
    return {name: float(np.median(seconds[name]) / np.median(seconds[""])) for name in teachers}


def count_false_alarms(model: Path, shared: Path) -> dict[str, tuple[int, int]]:
    """Count detections in images without objects: name -> (number of images, detections)."""
    defaults = parameter_defaults("detector.yaml")
    backend = open_backend(model, runtime="onnxruntime")
    detector = Detector(backend, defaults["confidence"], defaults["iou"], 300)
    alarms = {}
    for name, stems in EMPTY.items():
        images = (read_image(shared / UNLABELLED / f"{stem}.jpg") for stem in stems)
        alarms[name] = len(stems), sum(len(detector(image)) for image in images)
    return alarms
