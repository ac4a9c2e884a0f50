"""drone-kd selftest: TensorRT compared with ONNX Runtime on this device, and both measured.

Builds the engine, runs both runtimes on the golden images of the model and on one image, and
compares their rows and detections. What cannot be done here is reported, and the rest is done.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter

import cv2
import numpy as np

from drone_kd import machine
from drone_kd.backends import tensorrt_is_installed
from drone_kd.backends.golden import Reproduction, read_golden, reproduce
from drone_kd.backends.model_file import ModelFile, read_model_file
from drone_kd.backends.tensorrt import cuda
from drone_kd.commands.bench import stage_percentiles
from drone_kd.commands.shared_options import (
    add_measurement,
    add_model,
    check_folder,
    show_progress,
)
from drone_kd.core.detections import Detections
from drone_kd.core.model_spec import ModelError
from drone_kd.core.postprocess import InferenceError
from drone_kd.core.preprocess import letterbox
from drone_kd.detector import Detector, load_detector
from drone_kd.files import write_text
from drone_kd.media.image_files import read_image
from drone_kd.paths import default_model_path, selftest_image_path
from drone_kd.text import one_line

INTERRUPTED = "nothing was written; an engine that was built stays in the cache"
SCHEMA = 1
PERCENTILES = (50, 95, 99)

# How far each detection of TensorRT may be from that of ONNX Runtime: corners in network pixels,
# and scores. Both compute the same graph; they round differently, and ONNX Runtime on a CPU
# computes fp16 in fp32.
LIMITS = {"fp32": (0.5, 0.01), "fp16": (1.0, 0.02), "int8": (4.0, 0.1)}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model(parser)
    image = "image to compare on (default: the one of the package)"
    add_measurement(parser, "measured runs per runtime", image)
    default = Path("selftest.json")
    parser.add_argument(
        "--output", type=Path, default=default, metavar="OUT", help="file for the report"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the self-test, print its report and write it; 1 when it failed."""
    check_folder("--output", arguments.output)
    image = Path(arguments.image or selftest_image_path())
    model = Path(arguments.model or default_model_path())
    report = run_selftest(model, image, arguments.frames)
    write_text(arguments.output, f"{json.dumps(report, indent=1)}\n")
    print(summary(report))
    print(f"report       {one_line(arguments.output)}")
    return 1 if report["verdict"] == "fail" else 0


def run_selftest(model: Path, source: Path, frames: int) -> dict:
    """Test one model on this computer with one image, and measure `frames` runs of each runtime.

    Returns:
        What becomes selftest.json. "verdict" is "pass"; "incomplete", where something could not be
        done here; or "fail". "remarks" says why.

    Raises:
        ModelError: the model cannot be used at all.
        InferenceError: ONNX Runtime gave no usable output.
    """
    image = read_image(source)
    file = read_model_file(model)  # once: both runtimes get the same bytes
    verdict, remarks = "pass", []
    power_mode, temperatures = machine.power_mode(), machine.temperatures_c()
    if not power_mode:
        remarks.append("the power mode cannot be read (nvpmodel)")
    if not temperatures:
        remarks.append("temperatures cannot be read")

    detector, reference, onnxruntime_report = _run(file, "onnxruntime", image, frames)
    spec = detector.backend.spec
    tensorrt_report, agreement = None, None
    if not tensorrt_is_installed():
        verdict = "incomplete"
        remarks.append("TensorRT is not installed: no engine was built, nothing was compared")
    else:
        try:
            _, found, tensorrt_report = _run(file, "tensorrt", image, frames)
        except (ModelError, InferenceError) as error:
            verdict = "fail"
            remarks.append(f"TensorRT failed: {error}")
    if tensorrt_report is not None:
        scale = letterbox(image, spec.input_width, spec.input_height)[1].scale
        limits = LIMITS[spec.precision]
        agreement = compare(reference, found, scale, detector.confidence, limits)
        if not agreement["boxes"]:
            verdict = "incomplete"
            remarks.append("nothing was compared: no runtime detects anything in this image")
        elif not agreement["within_limits"]:
            verdict = "fail"
            remarks.append("TensorRT and ONNX Runtime do not agree")

    if onnxruntime_report["golden"] is None:
        remarks.append("the model has no golden images to reproduce: export it again")
    elif not onnxruntime_report["golden"]["holds"]:
        verdict = "fail"
        remarks.append("ONNX Runtime does not reproduce the golden images of the model")

    python = platform.python_version()
    versions = {"python": python, "numpy": np.__version__, "opencv": cv2.__version__}
    return {
        "schema": SCHEMA,
        "verdict": verdict,
        "remarks": remarks,
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "name": machine.machine_name(),
            "kernel": platform.release(),
            "power_mode": power_mode,
            "temperatures_before_c": temperatures,
            "temperatures_after_c": machine.temperatures_c(),
        },
        "versions": versions,
        "model": {
            "file": str(model),
            "sha256": file.sha256,
            "precision": spec.precision,
            "input_shape": list(spec.input_shape),
            "classes": list(spec.classes),
        },
        "image": {"file": str(source), "width": image.shape[1], "height": image.shape[0]},
        "frames": frames,
        "onnxruntime": onnxruntime_report,
        "tensorrt": tensorrt_report,
        "agreement": agreement,
    }


def _run(
    model: ModelFile, runtime: str, image: np.ndarray, frames: int
) -> tuple[Detector, Detections, dict]:
    show_progress(f"{runtime}: loading the model")
    memory, gpu_before = machine.process_memory_mb(), _gpu_memory_mb()
    start = perf_counter()
    detector = load_detector(model, runtime=runtime, allow_fallback=False, progress=show_progress)
    seconds = perf_counter() - start
    show_progress(f"{runtime}: measuring {frames} frames")
    times_ms = stage_percentiles(detector, image, frames, PERCENTILES)
    found = detector(image)
    golden = read_golden(model.metadata, detector.backend.spec)
    reproduction = asdict(reproduce(detector.backend, golden)) if golden else None
    gpu_after = _gpu_memory_mb()
    gpu = None if gpu_before is None or gpu_after is None else round(gpu_after - gpu_before, 1)
    report = {
        "name": detector.backend.name,
        "load_seconds": round(seconds, 2),
        "memory_mb": round(machine.process_memory_mb() - memory, 1),
        "gpu_memory_mb": gpu,
        "detections": len(found),
        "golden": reproduction,
        "times_ms": {
            stage: {f"p{p}": round(value, 3) for p, value in zip(PERCENTILES, values, strict=True)}
            for stage, values in times_ms.items()
        },
    }
    return detector, found, report


def _gpu_memory_mb() -> float | None:
    """Return the GPU memory in use, by any program, in MB; None where there is no GPU."""
    try:
        return cuda.used_memory() / 1e6
    except cuda.CudaError:
        return None


def compare(
    reference: Detections,
    found: Detections,
    scale: float,
    confidence: float,
    limits: tuple[float, float],
) -> dict:
    """Compare the detections of two runtimes in one image.

    Each box of one that is surely above the threshold is compared with the nearest box of its
    class of the other, both ways round.

    Args:
        reference, found: detections in image pixels, of scores above `confidence`.
        scale: network pixels per image pixel.
        limits: how far corners (network px) and scores may differ.

    Returns:
        The entry "agreement" of selftest.json; drift in network pixels and in score.
    """
    limit_px, limit_score = limits
    boxes, missing, drift_px, drift_score = 0, 0, 0.0, 0.0
    for one, other in ((reference, found), (found, reference)):
        for index in np.flatnonzero(one.scores > confidence + limit_score):
            boxes += 1
            same = np.flatnonzero(other.class_ids == one.class_ids[index])
            if not same.size:
                missing += 1
                continue
            px = np.abs(other.xyxy[same] - one.xyxy[index]).max(axis=1) * scale
            nearest = px.argmin()
            difference = abs(other.scores[same[nearest]] - one.scores[index])
            drift_px = max(drift_px, float(px[nearest]))
            drift_score = max(drift_score, float(difference))
    return {
        "boxes": boxes,
        "missing": missing,
        "drift_px": round(drift_px, 4),
        "drift_score": round(drift_score, 5),
        "limit_px": limit_px,
        "limit_score": limit_score,
        "within_limits": not missing and drift_px <= limit_px and drift_score <= limit_score,
    }


def summary(report: dict) -> str:
    """Return a report of `run_selftest` as one page of text."""
    computer, model, image = report["machine"], report["model"], report["image"]
    model_name, image_name = one_line(model["file"]), one_line(image["file"])
    lines = [
        f"machine      {computer['name']}, kernel {computer['kernel']}",
        f"power mode   {computer['power_mode'] or 'not readable'}",
        f"hottest      {_hottest(computer['temperatures_before_c'])} before, "
        f"{_hottest(computer['temperatures_after_c'])} after",
        f"model        {model_name}, {model['precision']}, input {model['input_shape']}, "
        f"{len(model['classes'])} classes",
        f"             sha256 {model['sha256']}",
        f"image        {image_name}, {image['width']}x{image['height']}",
    ]
    for runtime in ("onnxruntime", "tensorrt"):
        run = report[runtime]
        if run is None:
            lines += ["", f"{runtime}: not done"]
            continue
        gpu = run["gpu_memory_mb"] is not None
        lines += [
            "",
            f"{run['name']}: {run['detections']} detections, loaded in {run['load_seconds']} s, "
            f"{run['memory_mb']} MB" + (f", GPU {run['gpu_memory_mb']} MB" if gpu else ""),
            f"golden images    {_golden(run['golden'])}",
            f"{'ms, ' + str(report['frames']) + ' frames':<16}"
            + "".join(f"{name:>9}" for name in run["times_ms"]["total"]),
        ]
        for stage, values in run["times_ms"].items():
            lines.append(f"{stage:<16}" + "".join(f"{value:>9.2f}" for value in values.values()))
    agreement = report["agreement"]
    if agreement is not None:
        lines += [
            "",
            f"agreement    {agreement['boxes']} boxes compared, {agreement['missing']} missing, "
            f"at most {agreement['drift_px']:.2f} px (limit {agreement['limit_px']:g}) and "
            f"{agreement['drift_score']:.4f} in score (limit {agreement['limit_score']:g})",
        ]
    lines += ["", f"verdict      {report['verdict'].upper()}"]
    lines += [f"             {remark}" for remark in report["remarks"]]
    return "\n".join(lines)


def _golden(reproduction: dict | None) -> str:
    if reproduction is None:
        return "none in the model"
    return str(Reproduction(**reproduction))


def _hottest(zones: dict[str, float]) -> str:
    if not zones:
        return "not readable"
    name = max(zones, key=lambda zone: zones[zone])
    return f"{zones[name]:.1f} °C ({name})"
