"""Steps of the report that measure; each runs in a process of its own.

    python -m drone_kd.device_report.measure STEP RESULT.json TASK

TASK is the JSON of a `Task`. A step that ends writes {"status": "pass" or "fail", "result": …,
"error": …}. One that crashes the process, as a builder may, leaves no file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from drone_kd import machine
from drone_kd.backends import open_backend
from drone_kd.backends.golden import read_golden, reproduce
from drone_kd.backends.model_file import read_model_file
from drone_kd.commands.bench import stage_percentiles
from drone_kd.commands.selftest import LIMITS, PERCENTILES, compare
from drone_kd.commands.shared_options import show_progress
from drone_kd.core.arrays import UInt8Array
from drone_kd.core.model_spec import ModelError
from drone_kd.core.postprocess import InferenceError
from drone_kd.core.preprocess import letterbox
from drone_kd.detector import Detector, load_detector
from drone_kd.files import write_text
from drone_kd.media.image_files import read_image
from drone_kd.parsing import parse_json, read_json
from drone_kd.paths import cache_folder, selftest_image_path
from drone_kd.processes import running
from drone_kd.text import one_line

_SAMPLE_SECONDS = 0.5
_FRAMES_ON_CPU = 20
_FRAMES_BEFORE_SWAP = 20
_SOAK_PARTS = 5
_LONGEST_STOP_SECONDS = 30.0
_SHOWN = 600  # characters of an error


@dataclass(frozen=True)
class Task:
    """What a step works on."""

    models: tuple[str, ...]  # paths; most steps use the first, a swap goes to the last
    runtime: str  # of the steps for either runtime
    frames: int
    soak_seconds: float


class Sampler:
    """Samples power, temperature, GPU clock and memory every half second, within a `with`."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._samples: list[dict[str, dict[str, float]]] = []

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            clocks: dict[str, float] = {**machine.gpu_clocks_mhz()}
            self._samples.append(
                {
                    "power_w": machine.power_w(),
                    "temperature_c": machine.temperatures_c(),
                    "gpu_mhz": {name: clocks[name] for name in ("current",) if name in clocks},
                    "free_mb": {"memory": machine.memory_mb().get("available", 0.0)},
                }
            )
            if self._stop.wait(_SAMPLE_SECONDS):
                return

    def summary(self) -> dict[str, Any]:
        """Return lowest, mean and highest value of each quantity that can be read."""
        found: dict[str, Any] = {}
        for quantity in self._samples[0]:
            names = dict.fromkeys(name for sample in self._samples for name in sample[quantity])
            for name in names:
                values = [s[quantity][name] for s in self._samples if name in s[quantity]]
                low, mean, high = min(values), sum(values) / len(values), max(values)
                numbers = {"lowest": low, "mean": mean, "highest": high}
                rounded = {key: round(value, 3) for key, value in numbers.items()}
                found.setdefault(quantity, {})[name] = rounded
        return found


def build(task: Task) -> tuple[bool, dict[str, Any]]:
    """Build the engine, or load the one of the cache; it must reproduce the golden images."""
    built = False

    def progress(line: str) -> None:
        nonlocal built
        built = built or line.startswith("engine built in ")
        show_progress(line)

    file = read_model_file(task.models[0])
    start = perf_counter()
    with Sampler() as sampler:
        backend = open_backend(file, runtime="tensorrt", progress=progress)
    return True, {
        "name": backend.name,
        "built": built,
        "seconds": round(perf_counter() - start, 1),
        **sampler.summary(),
    }


def speed(task: Task) -> tuple[bool, dict[str, Any]]:
    """Measure the stages and compare the golden images."""
    detector = _detector(task.models[0], task.runtime)
    frames = task.frames if task.runtime == "tensorrt" else min(task.frames, _FRAMES_ON_CPU)
    with Sampler() as sampler:
        times = stage_percentiles(detector, read_image(selftest_image_path()), frames, PERCENTILES)
    golden = read_golden(read_model_file(task.models[0]).metadata, detector.backend.spec)
    found = reproduce(detector.backend, golden) if golden else None
    return found is None or found.holds, {
        "name": detector.backend.name,
        "precision": detector.backend.spec.precision,
        "input_shape": list(detector.backend.spec.input_shape),
        "frames": frames,
        "golden": asdict(found) if found else None,
        "times_ms": {
            stage: {f"p{p}": round(value, 3) for p, value in zip(PERCENTILES, values, strict=True)}
            for stage, values in times.items()
        },
        **sampler.summary(),
    }


def agreement(task: Task) -> tuple[bool, dict[str, Any]]:
    """Compare detections with those of ONNX Runtime, in the shipped image and its quarters."""
    reference = _detector(task.models[0], "onnxruntime")
    detector = _detector(task.models[0], "tensorrt")
    spec = detector.backend.spec
    results = []
    for view in _views(read_image(selftest_image_path())):
        scale = letterbox(view, spec.input_width, spec.input_height)[1].scale
        pair = reference(view), detector(view)
        results.append(compare(*pair, scale, detector.confidence, LIMITS[spec.precision]))
    holds = all(result["within_limits"] for result in results)
    return holds, {
        "images": len(results),
        "boxes": sum(result["boxes"] for result in results),
        "missing": sum(result["missing"] for result in results),
        "drift_px": max(result["drift_px"] for result in results),
        "drift_score": max(result["drift_score"] for result in results),
    }


def layers(task: Task) -> tuple[bool, dict[str, Any]]:
    """Return TensorRT's description of the engine's layers."""
    backend = open_backend(task.models[0], runtime="tensorrt", may_build=False)
    text: str = backend.layers()  # type: ignore[attr-defined]  # TrtBackend's
    return True, {"layers": parse_json(text, "layers")}


def swap(task: Task) -> tuple[bool, dict[str, Any]]:
    """Measure the frames of one model while another one is loaded."""
    detector, image = _detector(task.models[0], task.runtime), read_image(selftest_image_path())
    for _ in range(_FRAMES_BEFORE_SWAP):
        detector(image)
    times: list[tuple[float, float]] = []
    enough, loaded, errors = threading.Event(), threading.Event(), []

    def detect() -> None:
        try:
            while not loaded.is_set():
                start = perf_counter()
                detector(image)
                times.append((start, perf_counter() - start))
                if len(times) == _FRAMES_BEFORE_SWAP:
                    enough.set()
        except (InferenceError, ValueError) as error:
            errors.append(one_line(error, _SHOWN))
        finally:
            enough.set()

    thread = threading.Thread(target=detect)
    thread.start()
    try:
        enough.wait()
        start = perf_counter()
        _detector(task.models[-1], task.runtime)
        end = perf_counter()
    finally:
        loaded.set()
        thread.join()
    before = [seconds for at, seconds in times if at < start]
    during = [seconds for at, seconds in times if start <= at <= end]
    return not errors, {
        "load_seconds": round(end - start, 2),
        "frames_during": len(during),
        "before_ms": _ms(before, 50),
        "during_ms": _ms(during, 50),
        "worst_during_ms": _ms(during, 100),
        "errors": errors,
    }


def soak(task: Task) -> tuple[bool, dict[str, Any]]:
    """Detect without a pause; compare the first and the last fifth."""
    detector, image = _detector(task.models[0], task.runtime), read_image(selftest_image_path())
    detector(image)
    memory = machine.process_memory_mb()
    seconds: list[float] = []
    end = perf_counter() + task.soak_seconds
    with Sampler() as sampler:
        while (start := perf_counter()) < end or len(seconds) < _SOAK_PARTS:
            detector(image)
            seconds.append(perf_counter() - start)
    part = len(seconds) // _SOAK_PARTS
    return True, {
        "seconds": round(sum(seconds), 1),
        "frames": len(seconds),
        "first_ms": _ms(seconds[:part], 50),
        "last_ms": _ms(seconds[-part:], 50),
        "p99_ms": _ms(seconds, 99),
        "memory_growth_mb": round(machine.process_memory_mb() - memory, 1),
        **sampler.summary(),
    }


def interrupt(task: Task) -> tuple[bool, dict[str, Any]]:
    """Press Ctrl-C in a build: it must end soon, and the previous engine must still load."""
    # Ends the build, too, if the report is interrupted meanwhile.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # A shell's background jobs ignore it, and so would the build.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, "-m", "drone_kd.cli", "build", "--rebuild", task.models[0]]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with running(command, **streams) as process:
        assert process.stderr is not None
        sent = False
        start = perf_counter()
        for line in process.stderr:
            if not sent and "building for" in line:
                sent, start = True, perf_counter()
                process.send_signal(signal.SIGINT)
        code = process.wait()
    seconds = perf_counter() - start
    open_backend(task.models[0], runtime="tensorrt", may_build=False)
    result = {"interrupted": sent, "exit_code": code, "seconds": round(seconds, 1)}
    if not sent:  # the build took less time than the first line of its progress
        return code == 0, result
    return code == 128 + signal.SIGINT and seconds < _LONGEST_STOP_SECONDS, result


def foreign(task: Task) -> tuple[bool, dict[str, Any]]:
    """Load what must be refused: a file named *.engine, an altered engine, another board's."""
    engines = cache_folder(show_progress) / "engines"
    sha256 = read_model_file(task.models[0]).sha256
    refusals = {"made elsewhere": _refusal("model.engine")}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        copy = Path(folder, "drone_kd", "engines")
        copy.mkdir(parents=True, mode=0o700)
        records = []
        for path in engines.glob("*.json"):
            record = read_json(path)
            if record["key"]["model_sha256"] == sha256 and path.with_suffix(".plan").exists():
                records.append((copy / path.name, record))
                plan = bytearray(path.with_suffix(".plan").read_bytes())
                plan[-1] ^= 1
                shutil.copy(path, copy)
                (copy / path.name).with_suffix(".plan").write_bytes(plan)
        refusals["altered"] = _refusal(task.models[0])
        for path, record in records:
            record["key"]["board"] = "another board"
            path.write_text(json.dumps(record))
        refusals["of another board"] = _refusal(task.models[0])
    expected = {
        "made elsewhere": "are not accepted",
        "altered": "was altered",
        "of another board": "was built for something else",
    }
    return all(text in refusals[name] for name, text in expected.items()), refusals


STEPS: dict[str, Callable[[Task], tuple[bool, dict[str, Any]]]] = {
    function.__name__: function
    for function in (build, speed, agreement, layers, swap, soak, interrupt, foreign)
}


def _detector(model: str, runtime: str) -> Detector:
    return load_detector(
        model, runtime=runtime, allow_fallback=False, may_build=False, progress=show_progress
    )


def _views(image: UInt8Array) -> Iterator[UInt8Array]:
    """Yield an image and its quarters."""
    yield image
    height, width = (size // 2 for size in image.shape[:2])
    for y in (0, height):
        for x in (0, width):
            yield image[y : y + height, x : x + width]


def _refusal(model: str) -> str:
    try:
        open_backend(model, runtime="tensorrt", may_build=False)
    except ModelError as error:
        return one_line(error, _SHOWN)
    return "it was accepted"


def _ms(seconds: list[float], percentile: int) -> float | None:
    return round(float(np.percentile(seconds, percentile)) * 1e3, 3) if seconds else None


def main(arguments: list[str]) -> int:
    """Run a step and write its result."""
    step, output, task = arguments
    values = parse_json(task, "task")
    outcome: dict[str, Any] = {"status": "fail", "result": {}, "error": ""}
    try:
        passed, outcome["result"] = STEPS[step](Task(**values))
        outcome["status"] = "pass" if passed else "fail"
    except (RuntimeError, OSError, ValueError) as error:
        outcome["error"] = one_line(error, _SHOWN) or type(error).__name__
    with contextlib.suppress(BrokenPipeError):
        write_text(Path(output), json.dumps(outcome))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
