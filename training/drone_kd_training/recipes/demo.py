# SPDX-License-Identifier: AGPL-3.0-or-later
"""`make demo`: distil a student, export it and fly it; a second run repeats only missing steps.

    make demo      # synthetic images, the teacher of this repository
    make demo DATA=path/to/data.yaml TEACHER=teacher.pt STUDENT=yolo11n.yaml TEACHER_EPOCHS=0

The synthetic images show places at night, as a thermal camera sees them: the teacher knows such
images, the student does not. Those of one place are labelled, some hundred of others are not. Two
students train side by side: one on the labelled images alone, one on all of them with the teacher.
With your own data set both use all its labels, and the teacher is trained on it first, for
TEACHER_EPOCHS; 0 uses it as it is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from drone_kd.backends.onnx_runtime import read_spec
from drone_kd.core.model_spec import ModelSpec
from drone_kd.files import atomic_folder, write_text
from drone_kd.parsing import read_json
from drone_kd.progress import duration
from drone_kd_training.data.dataset import image_paths, load_data
from drone_kd_training.data.generate import generate
from drone_kd_training.distillation.config import NO_TEACHER, Config
from drone_kd_training.distillation.criterion import computes_in_bfloat16
from drone_kd_training.distillation.run_report import by_model, effect
from drone_kd_training.export.export import export
from drone_kd_training.export.gate_table import gate_table
from drone_kd_training.models.checkpoints import PACKAGED_MODELS
from drone_kd_training.recipes.demo_flight import fly
from drone_kd_training.recipes.demo_image import compare_models
from drone_kd_training.recipes.runner import SHORT_RUN, run_recipe, train
from drone_kd_training.tables import format_table

FLIGHT_SECONDS = 20.0
# Objects have the size in the input at which the demo's teacher was trained.
ZOOM = 2.0
# The flight shows a place that no image shows, from where objects have that size, too.
FLIGHT = {"scene": "night", "seed": 2, "altitude": 30.0}
# Name in summary.json -> name in the metrics of the run.
MODELS = {"student_alone": "baseline", "distilled": "student", "teacher": "teacher"}


@dataclass(frozen=True)
class Plan:
    """Settings of one demonstration; the defaults are those of `make demo` without a data set."""

    output: Path = Path("runs/demo")
    data: str | None = None
    teacher: str = str(PACKAGED_MODELS / "night-teacher.pt")
    # Trained already: in minutes on two cores a student learns nothing from scratch.
    student: str = str(PACKAGED_MODELS / "demo-student.pt")
    epochs: int = 0
    steps: int = 720  # in the place of epochs
    views: int = 2  # stored augmentations of each image: the teacher runs once for each
    teacher_epochs: int = 0
    imgsz: int = 320
    batch: int = 4
    lr0: float = 0.002
    fraction: float = 1.0
    seed: int = 0
    labelled_frames: int = 5
    # Most of what there is to learn is in the other places.
    labelled_share: float = 0.25
    unlabelled_frames: int = 395
    val_frames: int = 200


# With your own data set: a usual pair from model yamls, the teacher trained first.
OWN_DATA = {"teacher": "yolo11s.yaml", "student": "yolo11n.yaml", "epochs": 10, "steps": 0,
            "teacher_epochs": 10, "lr0": 0.001, "imgsz": 640, "batch": 8, "views": 0}  # fmt: skip


def run(plan: Plan) -> dict[str, Any]:
    """Run the missing steps; return the summary that is also in ``summary.json``."""
    started = time.monotonic()
    print("[1/3] Distil", flush=True)
    data, unlabelled = _prepare_data(plan)
    models = _distil(plan, data, unlabelled)
    print(f"\n{as_text(models)}\n{_draw_models(plan, data)}\n", flush=True)
    print("[2/3] Export", flush=True)
    model, spec = _export(plan, data)
    print(f"[3/3] Fly: detector and camera over DDS, {FLIGHT_SECONDS:.0f} s", flush=True)
    flight = _fly(plan, model)
    summary = {**models, "gates": spec.gates, "flight": flight}
    write_text(plan.output / "summary.json", json.dumps(summary, indent=1))
    print(f"\nSummary\n{as_text(summary)}")
    print(f"Images with detections: {plan.output / 'flight'}")
    elapsed = duration(time.monotonic() - started)
    print(f"All results: {plan.output} ({elapsed}; delete the folder to start again)")
    return summary


def as_text(summary: dict[str, Any]) -> str:
    """Return the models, the effect of distillation and the flight as text."""
    figures = {key: summary[name] for name, key in MODELS.items()}
    lines = [format_table(by_model(figures))]
    if brought := effect(figures):
        lines.append(f"Distillation: {brought}")
    if flight := summary.get("flight"):
        lines.append(
            f"Flight: {flight['frames_in']} images in, {flight['frames_out']} out, camera to "
            f"detections p50 {flight['latency_p50_ms']:.0f} ms, p95 "
            f"{flight['latency_p95_ms']:.0f} ms"
        )
    return "\n".join(lines)


def _prepare_data(plan: Plan) -> tuple[Path, tuple[str, ...]]:
    """Return the data.yaml, and the folders of unlabelled images."""
    if plan.data is not None:
        return Path(plan.data), ()
    rendered = generate(
        plan.output / "data",
        plan.labelled_frames + plan.unlabelled_frames,
        plan.val_frames,
        imgsz=plan.imgsz,
        seed=plan.seed,
        zoom=ZOOM,
        thermal=True,
        vehicles=True,
    )
    few, unlabelled = plan.output / "few.yaml", plan.output / "unlabelled"
    if not few.is_file():
        _hide_labels(plan, rendered, few, unlabelled)
    labelled, total = plan.labelled_frames, plan.labelled_frames + plan.unlabelled_frames
    print(f"{labelled} of {total} images have labels, {plan.val_frames} validate", flush=True)
    return few, (str(unlabelled.resolve()),)


def _hide_labels(plan: Plan, rendered: Path, few: Path, unlabelled: Path) -> None:
    """Write a data set with the first images and their labels, and a folder of the other images.

    These first images show one place, as those of one flight that somebody has labelled.
    """
    data = load_data(rendered)
    images = image_paths(data.train)
    labelled = images[: plan.labelled_frames]
    with atomic_folder(unlabelled) as folder:
        for path in images:
            if path not in labelled:
                shutil.copyfile(path, folder / path.name)
    write_text(few.with_suffix(".txt"), "\n".join(map(str, labelled)) + "\n")
    content = {"train": "few.txt", "val": str(data.val), "names": dict(enumerate(data.names))}
    write_text(few, yaml.safe_dump(content, sort_keys=False))


def _distil(plan: Plan, data: Path, unlabelled: tuple[str, ...]) -> dict[str, Any]:
    """Train teacher (if asked to), baseline and distilled student; return their metrics."""
    teacher = plan.teacher
    if plan.teacher_epochs:
        print(f"\nTeacher {plan.teacher} on {data}", flush=True)
        config = _config(plan, data, NO_TEACHER, plan.teacher)
        train(replace(config, epochs=plan.teacher_epochs, steps=0), plan.output / "teacher")
        teacher = str(plan.output / "teacher" / "best.pt")
    config = replace(
        _config(plan, data, teacher, plan.student), unlabelled=unlabelled, baseline=True
    )
    print(
        f"\nStudent {Path(plan.student).name} with teacher {Path(teacher).name}, and alone",
        flush=True,
    )
    metrics = train(config, plan.output / "distilled")
    return {name: metrics[key] for name, key in MODELS.items()}


def _config(plan: Plan, data: Path, teacher: str, student: str) -> Config:
    return Config(
        data=str(data.resolve()),
        teacher=teacher,
        student=student,
        epochs=plan.epochs or 1,
        steps=plan.steps,
        labelled_share=plan.labelled_share,
        views=plan.views,
        imgsz=plan.imgsz,
        batch=plan.batch,
        seed=plan.seed,
        fraction=plan.fraction,
        val=False,
        # One optimizer step per batch: a small data set has few batches.
        overrides={
            **SHORT_RUN,
            "lr0": plan.lr0,
            "cos_lr": True,
            "warmup_epochs": 0.5,
            "nbs": plan.batch,
            # As the packaged teacher was trained.
            **({} if plan.data else {"scale": 0.25, "flipud": 0.5}),
            **({"amp": "bf16"} if computes_in_bfloat16() else {}),
        },
    )


def _draw_models(plan: Plan, data: Path) -> str:
    """Draw labels and all models on validation images; return what to tell the user."""
    image = plan.output / "comparison.jpg"
    if not image.is_file():
        teacher = plan.output / "teacher" / "best.pt" if plan.teacher_epochs else plan.teacher
        checkpoints = {
            "student alone": plan.output / "distilled" / "baseline" / "best.pt",
            "distilled": plan.output / "distilled" / "best.pt",
            "teacher": Path(teacher),
        }
        compare_models(checkpoints, data, plan.imgsz, image)
    return f"Labels, both students and the teacher on the same images: {image}"


def _export(plan: Plan, data: Path) -> tuple[Path, ModelSpec]:
    model = plan.output / "model.onnx"
    if not model.is_file():
        export(plan.output / "distilled" / "best.pt", model, data=str(data))
    spec = read_spec(model)
    print(f"{model}\n{gate_table(spec)}", flush=True)
    return model, spec


def _fly(plan: Plan, model: Path) -> dict[str, Any]:
    result = plan.output / "flight.json"
    if not result.is_file():
        # Without a data set the camera renders its own flight.
        camera = FLIGHT if plan.data is None else {"source": str(load_data(plan.data).val)}
        flight = fly(model, camera, plan.output / "flight", seconds=FLIGHT_SECONDS)
        write_text(result, json.dumps(flight, indent=1))
    return read_json(result)


def main(argv: list[str] | None = None) -> int:
    """Parse what `make demo` passes on; return the exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", help="data.yaml in Ultralytics' format (default: synthetic images)")
    kinds = {"teacher": str, "student": str, "epochs": int, "teacher-epochs": int, "imgsz": int}
    for name, kind in {**kinds, "fraction": float, "output": Path}.items():
        add(f"--{name}", type=kind)
    given = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None}
    if "data" in given:
        folder = Path(f"runs/demo-{Path(given['data']).resolve().parent.name}")
        given = {"output": folder, **OWN_DATA, **given}
    return run_recipe(lambda: run(Plan(**given)))


if __name__ == "__main__":
    sys.exit(main())
