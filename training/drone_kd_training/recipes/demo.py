# SPDX-License-Identifier: AGPL-3.0-or-later
"""`make demo`: distil a student, export it and fly it; a second run repeats only missing steps.

    make demo      # synthetic images, the teacher of this repository
    make demo DATA=path/to/data.yaml TEACHER=teacher.pt STUDENT=yolo11n.yaml TEACHER_EPOCHS=0

With your own data set the teacher is trained on it first, for TEACHER_EPOCHS; 0 uses it as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drone_kd.backends.onnx_runtime import read_spec
from drone_kd.core.model_spec import ModelSpec
from drone_kd.files import write_text
from drone_kd.parsing import read_json
from drone_kd.progress import duration
from drone_kd_training.data.dataset import load_data
from drone_kd_training.data.generate import generate
from drone_kd_training.distillation.config import NO_TEACHER, Config
from drone_kd_training.export.export import export, gate_table
from drone_kd_training.models.checkpoints import PACKAGED_MODELS
from drone_kd_training.recipes.demo_flight import fly
from drone_kd_training.recipes.runner import SHORT_RUN, run_recipe, train
from drone_kd_training.tables import format_score, format_table

FLIGHT_SECONDS = 20.0


@dataclass(frozen=True)
class Plan:
    """Settings of one demonstration; the defaults are those of `make demo` without a data set."""

    output: Path = Path("runs/demo")
    data: str | None = None
    teacher: str = str(PACKAGED_MODELS / "demo-teacher.pt")
    # Trained already: in minutes on two cores a student learns nothing from scratch.
    student: str = str(PACKAGED_MODELS / "demo-student.pt")
    epochs: int = 2
    teacher_epochs: int = 0
    imgsz: int = 640
    batch: int = 4
    fraction: float = 1.0
    seed: int = 0
    train_frames: int = 120
    val_frames: int = 60


# With your own data set: a usual pair from model yamls, the teacher trained first.
OWN_DATA = {"teacher": "yolo11s.yaml", "student": "yolo11n.yaml", "epochs": 10,
            "teacher_epochs": 10, "batch": 8, "imgsz": 640}  # fmt: skip


def run(plan: Plan) -> dict[str, Any]:
    """Run the missing steps; return the summary that is also in ``summary.json``."""
    started = time.monotonic()
    print("[1/3] Distil", flush=True)
    data = _prepare_data(plan)
    models = _distil(plan, data)
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
    names = ("teacher", "student_alone", "distilled")
    teacher, baseline, distilled = (summary[name]["map50_95"] for name in names)
    flight = summary["flight"]
    return (
        f"{format_table({name.replace('_', ' '): summary[name] for name in names})}\n"
        f"Distillation: {100 * (distilled - baseline):+.1f} points of mAP50-95, of a gap of "
        f"{format_score(teacher - baseline)} (one seed)\n"
        f"Flight: {flight['frames_in']} images in, {flight['frames_out']} out, camera to "
        f"detections p50 {flight['latency_p50_ms']:.0f} ms, p95 {flight['latency_p95_ms']:.0f} ms"
    )


def _prepare_data(plan: Plan) -> Path:
    if plan.data is not None:
        return Path(plan.data)
    folder = plan.output / "data"
    return generate(folder, plan.train_frames, plan.val_frames, imgsz=plan.imgsz, seed=plan.seed)


def _distil(plan: Plan, data: Path) -> dict[str, Any]:
    """Train teacher (if asked to), baseline and distilled student; return their metrics."""
    teacher = plan.teacher
    if plan.teacher_epochs:
        print(f"\nTeacher {plan.teacher} on {data}", flush=True)
        _train(plan, "teacher", data, NO_TEACHER, plan.teacher, plan.teacher_epochs)
        teacher = str(plan.output / "teacher" / "best.pt")
    print(f"\nBaseline: student {Path(plan.student).name} alone", flush=True)
    baseline = _train(plan, "student", data, NO_TEACHER, plan.student, plan.epochs)
    print(f"\nDistilled: the same student with teacher {Path(teacher).name}", flush=True)
    distilled = _train(plan, "distilled", data, teacher, plan.student, plan.epochs)
    alone, student = baseline["student"], distilled["student"]
    return {"teacher": distilled["teacher"], "student_alone": alone, "distilled": student}


def _train(
    plan: Plan, name: str, data: Path, teacher: str, student: str, epochs: int
) -> dict[str, Any]:
    config = Config(
        data=str(data.resolve()),
        teacher=teacher,
        student=student,
        epochs=epochs,
        imgsz=plan.imgsz,
        batch=plan.batch,
        seed=plan.seed,
        fraction=plan.fraction,
        val=False,
        # One optimizer step per batch: a small data set has few batches.
        overrides={**SHORT_RUN, "nbs": plan.batch},
    )
    return train(config, plan.output / name)


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
        source = "" if plan.data is None else str(load_data(plan.data).val)
        flight = fly(model, source, plan.output / "flight", seconds=FLIGHT_SECONDS)
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
