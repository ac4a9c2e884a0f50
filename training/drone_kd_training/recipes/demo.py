# SPDX-License-Identifier: AGPL-3.0-or-later
"""`make demo`: distil, export and fly, for real and in one go; what is finished is not done again.

    make demo                                              # procedural frames, the teacher of
    this repository make demo DATA=path/to/data.yaml TEACHER=teacher.pt STUDENT=yolo11n.yaml
    TEACHER_EPOCHS=0

With a data set of one's own the teacher is first trained on it for TEACHER_EPOCHS (0: taken as it
is).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from drone_kd.backends.onnx_runtime import read_spec
from drone_kd.files import write_text
from drone_kd_training.data.dataset import load_data
from drone_kd_training.data.generate import generate
from drone_kd_training.distillation.config import NO_TEACHER, Config, read_config
from drone_kd_training.distillation.distill import distill
from drone_kd_training.export.export import export, gate_table
from drone_kd_training.models.checkpoints import PACKAGED_MODELS
from drone_kd_training.recipes.demo_flight import fly
from drone_kd_training.tables import format_score, format_table

FLIGHT_SECONDS = 20.0


@dataclass(frozen=True)
class Plan:
    """One demonstration; the values here are those of `make demo` without a data set."""

    output: Path = Path("runs/demo")
    data: str | None = None
    teacher: str = str(PACKAGED_MODELS / "demo-teacher.pt")
    # The default model's checkpoint: in minutes on two cores nothing is learnt from scratch.
    student: str = str(PACKAGED_MODELS / "demo-student.pt")
    epochs: int = 2
    teacher_epochs: int = 0
    imgsz: int = 640
    batch: int = 4
    fraction: float = 1.0
    seed: int = 0
    train_frames: int = 120
    val_frames: int = 60


# With a data set of one's own: a usual pair, both from a model yaml, the teacher trained first.
OWN_DATA = {
    "teacher": "yolo11s.yaml",
    "student": "yolo11n.yaml",
    "epochs": 10,
    "teacher_epochs": 10,
    "batch": 8,
    "imgsz": 640,
}
# A short run of its own schedule: Ultralytics' automatic one is made for hundreds of epochs.
SHORT_RUN = {
    "optimizer": "AdamW",
    "lr0": 0.001,
    "warmup_epochs": 1.0,
    "mosaic": 0.0,
    "close_mosaic": 0,
}


def run(plan: Plan) -> dict:
    """Run what is not done yet; returns the summary that is also in ``summary.json``."""
    started = time.time()
    out = plan.output
    print("[1/3] distil", flush=True)
    if plan.data is None:
        data = generate(
            out / "data", plan.train_frames, plan.val_frames, imgsz=plan.imgsz, seed=plan.seed
        )
        source, classes_from = "", "procedural flight"
    else:
        data = Path(plan.data)
        source = str(load_data(data).val)
        classes_from = str(data)
    teacher = plan.teacher
    if plan.teacher_epochs:
        print(f"teacher: {plan.teacher} on {data}, {plan.teacher_epochs} epochs", flush=True)
        _train(plan, out / "teacher", data, NO_TEACHER, plan.teacher, plan.teacher_epochs)
        teacher = str(out / "teacher" / "best.pt")
    print(f"student alone: {plan.student}, {plan.epochs} epochs", flush=True)
    alone = _train(plan, out / "student", data, NO_TEACHER, plan.student, plan.epochs)
    print(f"student with its teacher: {plan.epochs} epochs", flush=True)
    distilled = _train(plan, out / "distilled", data, teacher, plan.student, plan.epochs)
    table = format_table(
        {
            "teacher": distilled["teacher"],
            "student alone": alone["student"],
            "distilled": distilled["student"],
        }
    )
    print(table, flush=True)

    print("[2/3] export", flush=True)
    model = out / "model.onnx"
    if not model.is_file():
        export(out / "distilled" / "best.pt", model, data=str(data))
    spec = read_spec(model)
    print(f"{model}\n{gate_table(spec)}", flush=True)

    print(
        f"[3/3] fly: detector and camera ({classes_from}), {FLIGHT_SECONDS:.0f} s over DDS",
        flush=True,
    )
    flight_file = out / "flight.json"
    if not flight_file.is_file():
        flight = fly(model, source, out / "flight", seconds=FLIGHT_SECONDS)
        write_text(flight_file, json.dumps(flight, indent=1))
    flight = json.loads(flight_file.read_text(encoding="utf-8"))

    summary = {
        "teacher": distilled["teacher"],
        "student_alone": alone["student"],
        "distilled": distilled["student"],
        "gates": spec.gates,
        "flight": flight,
    }
    write_text(out / "summary.json", json.dumps(summary, indent=1))
    gap = distilled["teacher"]["map50_95"] - alone["student"]["map50_95"]
    gain = distilled["student"]["map50_95"] - alone["student"]["map50_95"]
    print("\nsummary\n" + table)
    print(
        f"distillation: {100 * gain:+.1f} points of mAP50-95, of a gap of {format_score(gap)} "
        "(one seed)"
    )
    print(
        f"flight: {flight['frames_in']} frames in, {flight['frames_out']} out, camera to "
        f"detections p50 {flight['latency_p50_ms']:.0f} ms, p95 {flight['latency_p95_ms']:.0f} ms"
    )
    print(
        f"pictures: {out / 'flight'}; all: {out} ({time.time() - started:.0f} s; delete the "
        "folder to start anew)"
    )
    return summary


def _train(plan: Plan, output: Path, data: Path, teacher: str, student: str, epochs: int) -> dict:
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
        overrides={**SHORT_RUN, "nbs": plan.batch},  # a step a batch: few batches are few steps
    )
    started = (output / "config.yaml").is_file()
    if started and read_config(output) != config:
        raise ValueError(
            f"{output} is of a run with other settings: choose another OUTPUT, or delete it"
        )
    return distill(config, output, resume=started)


def main(argv: list[str] | None = None) -> int:
    """Parse what `make demo` passes on. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", help="data.yaml in Ultralytics' format (default: procedural frames)"
    )
    parser.add_argument("--teacher")
    parser.add_argument("--student")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--teacher-epochs", type=int)
    parser.add_argument("--imgsz", type=int)
    parser.add_argument("--fraction", type=float)
    parser.add_argument("--output", type=Path)
    given = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None}
    if "data" in given:
        name = Path(given["data"]).resolve().parent.name
        given = {"output": Path(f"runs/demo-{name}"), **OWN_DATA, **given}
    return show(lambda: run(Plan(**given)))


def show(demo: Callable[[], object]) -> int:
    """Run a demo, with one line on what stops it. Returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    os.environ.setdefault("YOLO_OFFLINE", "1")
    try:
        demo()
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("DRONE_KD_TRACEBACK"):
            raise
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
