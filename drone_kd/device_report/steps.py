"""Steps of the report: their order, a process for each, and results that are kept."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from drone_kd.device_report.measure import Task
from drone_kd.device_report.privacy import anonymous, private_names, without_names
from drone_kd.files import write_text
from drone_kd.parsing import ParseError, read_json
from drone_kd.processes import running

SCHEMA = 1
_SIGNALS = {
    -signal.SIGKILL: "was killed, probably because memory ran out: add swap, stop other programs",
    -signal.SIGSEGV: "crashed (segmentation fault)",
    -signal.SIGABRT: "crashed (abort)",
}


@dataclass(frozen=True)
class Step:
    """One measurement: `name` is its key in report.json, `kind` one of `measure.STEPS`."""

    name: str
    kind: str
    label: str  # the model's name in the report
    task: Task
    key: str  # what the result depends on


def plan_steps(models: dict[str, Path], keys: dict[str, str], task: Task) -> list[Step]:
    """Return the steps in their order.

    Args:
        models: label to path; the first one is that of the steps for one model.
        keys: of each model, see `Step`.
        task: without models. Its runtime is "onnxruntime" where there is no TensorRT.
    """

    def step(name: str, kind: str, labels: Iterable[str], runtime: str = task.runtime) -> Step:
        used = tuple(labels)
        paths = tuple(str(models[label]) for label in used)
        key = " ".join(keys[label] for label in used)
        own = replace(task, models=paths, runtime=runtime)
        return Step(f"{name}: {used[0]}", kind, used[0], own, key)

    steps = []
    for label in models:
        steps += [
            step("build", "build", [label], "tensorrt"),
            step("tensorrt", "speed", [label], "tensorrt"),
            step("agreement", "agreement", [label], "tensorrt"),
            step("layers", "layers", [label], "tensorrt"),
            step("onnxruntime", "speed", [label], "onnxruntime"),
        ]
    first, *others = models
    return [
        *steps,
        step("swap", "swap", [first, *others[-1:]]),
        step("soak", "soak", [first]),
        step("interrupted build", "interrupt", [first], "tensorrt"),
        step("foreign engines", "foreign", [first], "tensorrt"),
    ]


class Report:
    """report.json in a folder: written after each step, so that an interruption loses one step.

    `names`: see `private_names`. ParseError: there is a file, but not of this format.
    """

    def __init__(self, folder: Path, restart: bool, names: Iterable[str] = ()) -> None:
        self.path = folder / "report.json"
        self._names = tuple(names) or tuple(private_names())
        self.content: dict[str, Any] = {"schema": SCHEMA, "steps": {}}
        if self.path.exists() and not restart:
            content = read_json(self.path)
            if not _is_report(content):
                raise ParseError(
                    f"{self.path}: expected a report of this version, got something else; name "
                    "another folder or give --restart"
                )
            self.content["steps"] = content["steps"]

    def is_done(self, step: Step) -> bool:
        """Whether a step passed in an earlier run, with all that it depends on as it is now."""
        found = self.content["steps"].get(step.name, {})
        return found.get("status") == "pass" and found.get("key") == step.key

    def must_run(self, step: Step) -> bool:
        """Whether to run a step; a build always: its engine may have gone since."""
        return step.kind == "build" or not self.is_done(step)

    def forget(self, names: Iterable[str]) -> None:
        """Keep only steps with these names."""
        steps = self.content["steps"]
        self.content["steps"] = {name: steps[name] for name in names if name in steps}

    def add(self, step: Step, outcome: dict[str, Any]) -> None:
        """Store the outcome of a step; the layers get a file of their own."""
        loaded = outcome["status"] == "pass" and not outcome["result"].get("built")
        if step.kind == "build" and loaded and self.is_done(step):
            return  # the earlier outcome tells how long the build took
        layers = outcome["result"].pop("layers", None)
        if layers is not None:
            text = without_names(json.dumps(layers, indent=1), self._names)
            name = f"layers-{step.label}.json"
            write_text(self.path.parent / name, f"{text}\n")
            parts = layers.get("Layers", []) if isinstance(layers, dict) else []
            outcome["result"] = {"file": name, "layers": len(parts)}
        self.content["steps"][step.name] = {"kind": step.kind, "model": step.label} | outcome
        self.content["steps"][step.name]["key"] = step.key
        self.write()

    def write(self) -> None:
        """Write the file, without paths and names of users and computers."""
        self.content = anonymous(self.content, self._names)
        write_text(self.path, f"{json.dumps(self.content, indent=1)}\n")

    def status(self, name: str) -> str:
        """Return "pass", "fail", "not done" or "" of a step."""
        return str(self.content["steps"].get(name, {}).get("status", ""))


def outcome_of(step: Step, report: Report, deadline: float, has_tensorrt: bool) -> dict[str, Any]:
    """Run a step; `deadline`: of time.monotonic(). KeyboardInterrupt: it has been ended."""
    if step.task.runtime == "tensorrt":
        if not has_tensorrt:
            return _not_done("TensorRT is not installed")
        if step.kind != "build" and report.status(f"build: {step.label}") != "pass":
            return _not_done("its engine was not built")
    left = deadline - time.monotonic()
    if left <= 0:
        return _not_done("no time was left: run the command again")
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        task = json.dumps(asdict(step.task))
        module = "drone_kd.device_report.measure"
        command = [sys.executable, "-m", module, step.kind, result, task]
        start = time.monotonic()
        with running(command, stdout=subprocess.DEVNULL) as process:
            try:
                code = process.wait(left)
            except subprocess.TimeoutExpired:
                return _not_done("it took longer than the time left: run the command again")
        seconds = round(time.monotonic() - start, 1)
        try:
            outcome: dict[str, Any] = read_json(result)
        except ParseError:
            reason = _SIGNALS.get(code, f"ended with code {code} and no result")
            outcome = {"status": "fail", "result": {}, "error": f"the process {reason}"}
    return outcome | {"seconds": seconds}


def _is_report(content: Any) -> bool:
    """Whether a JSON value has the steps that `Report.add` writes."""
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        return False
    steps = content.get("steps")
    return isinstance(steps, dict) and all(
        isinstance(step, dict)
        and all(isinstance(step.get(name), str) for name in ("status", "error", "key"))
        and isinstance(step.get("seconds"), (int, float))
        and isinstance(step.get("result"), dict)
        for step in steps.values()
    )


def _not_done(reason: str) -> dict[str, Any]:
    return {"status": "not done", "result": {}, "error": reason, "seconds": 0.0}
