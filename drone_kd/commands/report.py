"""drone-kd report: test and measure this device, and write a page for an issue.

Made for a Jetson; elsewhere what needs TensorRT is left out. Each step runs in a process of its
own, so that a crash or a lack of memory costs one step.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from drone_kd import machine
from drone_kd.backends import tensorrt_is_installed
from drone_kd.backends.model_file import read_model_file
from drone_kd.cli import versions
from drone_kd.commands.shared_options import count, show_progress
from drone_kd.core.model_spec import ModelSpec
from drone_kd.device_report.measure import Task
from drone_kd.device_report.page import write_page
from drone_kd.device_report.privacy import private_names, without_names
from drone_kd.device_report.steps import Report, outcome_of, plan_steps
from drone_kd.files import check_writable, write_text
from drone_kd.paths import cache_folder, default_model_path
from drone_kd.text import one_line

INTERRUPTED = "finished steps are kept, the same command goes on"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    text = "more models to test, e.g. other precisions; that of the package is always tested"
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL.onnx", help=text)
    default = Path("device-report")
    text = "folder for report.json, report.md and the layers of each engine"
    parser.add_argument("--output", type=Path, default=default, metavar="DIR", help=text)
    text = "end a step that runs after this time, and start none; the next run goes on"
    parser.add_argument("--minutes", type=count, default=20, metavar="M", help=text)
    text = "measured runs per model; with ONNX Runtime at most 20"
    parser.add_argument("--frames", type=count, default=200, metavar="N", help=text)
    text = "duration of the endurance run, in seconds"
    parser.add_argument("--soak", type=count, default=120, metavar="S", help=text)
    text = "repeat also the steps that an earlier run finished"
    parser.add_argument("--restart", action="store_true", help=text)


def run(arguments: argparse.Namespace) -> int:
    """Run the steps that are left and write the report; 1: a step failed."""
    deadline = time.monotonic() + 60 * arguments.minutes
    check_writable(arguments.output / "report.json")
    models = _labelled([default_model_path(), *arguments.models])
    has_tensorrt = tensorrt_is_installed()
    runtime = "tensorrt" if has_tensorrt else "onnxruntime"
    task = Task((), runtime, arguments.frames, arguments.soak)
    folders = [arguments.output, *(path.parent for path in models.values())]
    report = Report(arguments.output, arguments.restart, private_names(folders))
    facts = _facts()
    libraries = versions() | {"numpy": np.__version__, "OpenCV": cv2.__version__}
    state = [machine.gpu_state(), libraries, arguments.frames, arguments.soak]
    keys = {label: _key(path, state) for label, path in models.items()}
    steps = plan_steps(models, keys, task)
    report.forget(step.name for step in steps)
    report.content |= {"machine": facts, "versions": libraries, "models": list(models)}
    try:
        for number, step in enumerate(steps, 1):
            shown = f"step {number} of {len(steps)}: {step.name}"
            if report.must_run(step):
                show_progress(shown)
                report.add(step, outcome_of(step, report, deadline, has_tensorrt))
            show_progress(f"{shown}: {report.status(step.name)}")
    finally:
        verdict = _finish(report, {step.name for step in steps})
    page = one_line(arguments.output / "report.md")
    print(f"verdict      {verdict.upper()}")
    print(f"report       {page}: read it, then paste it into the issue form Jetson report")
    return 1 if verdict == "fail" else 0


def _finish(report: Report, names: set[str]) -> str:
    """Write the page and return the verdict: "pass", "fail" or "incomplete"."""
    statuses = {report.status(name) for name in names}
    verdict = "fail" if "fail" in statuses else "pass" if statuses == {"pass"} else "incomplete"
    written = datetime.now(timezone.utc).isoformat(timespec="seconds")
    report.content |= {"verdict": verdict, "written": written}
    report.write()
    write_text(report.path.with_name("report.md"), write_page(report.content))
    return verdict


def _labelled(paths: list[Path]) -> dict[str, Path]:
    """Return the models by file name; a second one of that name gets a number.

    ModelError: one cannot be used, which is found before the work.
    """
    models: dict[str, Path] = {}
    for path in paths:
        ModelSpec.from_metadata(read_model_file(path).metadata)
        stem, number = without_names(one_line(path.stem, 60), private_names()), 2
        label = f"{stem}.onnx"
        while label in models:
            label, number = f"{stem}-{number}.onnx", number + 1
        models[label] = path.absolute()
    return models


def _key(path: Path, state: list[Any]) -> str:
    text = json.dumps([read_model_file(path).sha256, *state])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _facts() -> dict[str, Any]:
    """Return what can be read about this device, without serial numbers and names."""
    cache = cache_folder(show_progress)
    folder = next(path for path in (cache, *cache.parents) if path.exists())
    return {
        "machine": machine.machine_name(),
        "L4T": machine.l4t(),
        "kernel": platform.release(),
        "driver": machine.gpu_driver(),
        "power mode": machine.power_mode(),
        "GPU clocks MHz": machine.gpu_clocks_mhz(),
        "CPU clocks MHz": machine.cpu_clocks_mhz(),
        "memory MB": {name: round(value) for name, value in machine.memory_mb().items()},
        "free disk MB": round(shutil.disk_usage(folder).free / 1e6),
        "temperature °C": machine.temperatures_c(),
        "power W": machine.power_w(),
    }
