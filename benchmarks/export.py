"""Accuracy, size and time of an export in each precision.

    python -m benchmarks.export best.pt --data data.yaml --name hit-uav [--aware QAT/best.pt]

Exports the checkpoint in every precision, even if a gate fails, and writes one row per file. Files
are timed in turn, in one run. A second table shows preprocessing and postprocessing of a 1280x720
frame with uint8 and float32 input. --aware is the result of `distill --quantize int8 --from
best.pt`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.runs import Result
from drone_kd.backends import open_backend
from drone_kd.core.model_spec import ModelSpec
from drone_kd.core.postprocess import decode
from drone_kd.core.preprocess import letterbox, network_input
from drone_kd.detector import load_detector
from drone_kd.simulation.scene import FlightPlan
from drone_kd.simulation.scene import fly as fly_scene
from drone_kd_training.data.dataset import image_paths, load_data, read_sample
from drone_kd_training.export.calibration import spread
from drone_kd_training.export.export import export
from drone_kd_training.export.gate_outcomes import FAILS, outcome
from drone_kd_training.export.parity import compare
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.models.torch_backend import TorchBackend

ROUNDS = 40
HOST_ROUNDS = 400
DRIFT_FRAMES = 20
SEEN = 0.25  # drift counts boxes that a detector would report


def main() -> None:
    """Measure, print and write both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--aware", type=Path, help="quantization-aware checkpoint trained from it")
    parser.add_argument("--imgsz", type=int, help="square input (default: as trained)")
    parser.add_argument("--name", default="new", help="of the CSV in benchmarks/export/")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        precisions(a, Path(folder))
        host_time(a, Path(folder))


def precisions(a: argparse.Namespace, folder: Path) -> None:
    """One row per precision."""
    plan = [(name, a.checkpoint, name) for name in ("fp32", "fp16", "int8")]
    if a.aware:
        plan.append(("int8, aware", a.aware, "int8"))
    specs: dict[str, ModelSpec] = {}
    files: dict[str, Path] = {}
    for name, checkpoint, precision in plan:
        files[name], specs[name] = export(
            checkpoint, folder / f"{len(files)}.onnx", precision, a.data, a.imgsz,
            force=True,
        )  # fmt: skip
    backends = {name: open_backend(path, runtime="onnxruntime") for name, path in files.items()}
    whole = TorchBackend(load_model(str(a.checkpoint))[0], a.imgsz)
    dataset = load_data(a.data)
    paths = spread(image_paths(dataset.val), DRIFT_FRAMES)
    samples = [read_sample(path, len(dataset.names)) for path in paths]
    frames = [
        letterbox(s.image, whole.spec.input_width, whole.spec.input_height)[0]
        for s in samples
        if s is not None
    ]
    times: dict[str, list[float]] = {name: [] for name in backends}
    for number in range(ROUNDS):
        for name, backend in backends.items():
            frame = frames[number % len(frames)][np.newaxis]
            started = perf_counter()
            backend.infer(frame)
            times[name].append(1000 * (perf_counter() - started))
    columns = "precision", "mAP50-95", "MB", "ONNX Runtime p50, ms", "drift p50, p99, px"
    calibrated = specs["int8"].calibration["frames"]
    what = f"precisions; drift over {len(frames)} frames, calibrated on {calibrated} frames"
    known = {
        "seeds": "none",
        "classes": " ".join(dataset.names),
        "image_sizes": str(whole.spec.input_width),
    }
    result = Result(f"export/{a.name}", what, [*columns, "gates", "RTX"], known)
    for name, backend in backends.items():
        drift = compare(whole, backend, frames, least_score=SEEN).box_px
        p50, p99 = np.quantile(drift, [0.5, 0.99], method="higher") if len(drift) else (0, 0)
        failed = [g for g, v in specs[name].gates.items() if outcome(v) == FAILS]
        score, size = 100 * specs[name].metrics["map50_95"], files[name].stat().st_size / 1e6
        cells = f"{score:.2f}", f"{size:.2f}", f"{np.median(times[name]):.1f}"
        gates = "; ".join(failed) or "hold"
        drift_px = f"{p50:.3f}, {p99:.3f}"
        result.add(name, *cells, drift_px, gates, rtx_verdict(files[name]))


def rtx_verdict(path: Path) -> str:
    """Return the result of TensorRT-RTX's builder for a file."""
    try:
        from benchmarks import rtx
    except ImportError:
        return "not installed"
    verdict = rtx.build(path)
    if not verdict.plan:
        return f"refused: {' '.join(verdict.errors)[:80]}"
    kinds = [f"{a}{' quantized' if q else ''}" for a, _, q in verdict.convolutions]
    counts = ", ".join(f"{kinds.count(k)} {k.lower()}" for k in sorted(set(kinds)))
    return f"builds ({counts})"


def host_time(a: argparse.Namespace, folder: Path) -> None:
    """Time preprocessing and postprocessing; the network runs once per input type."""
    names = ("uint8-nhwc", "float32-nchw")
    detectors = {}
    for name in names:
        file, _ = export(a.checkpoint, folder / f"{name}.onnx", imgsz=a.imgsz, input_=name)
        detectors[name] = load_detector(file)
    image = next(fly_scene(FlightPlan(width=1280, height=720))).image
    times: dict[str, list[float]] = {name: [] for name in names}
    rows, counts = {}, {}
    for name, detector in detectors.items():
        spec = detector.backend.spec
        canvas, _ = letterbox(image, spec.input_width, spec.input_height)
        rows[name] = detector.backend.infer(canvas[np.newaxis])[0]
        counts[name] = len(detector(image))
    for _ in range(HOST_ROUNDS):
        for name, detector in detectors.items():
            spec = detector.backend.spec
            started = perf_counter()
            canvas, placement = letterbox(image, spec.input_width, spec.input_height)
            network_input(canvas[np.newaxis], spec)
            decode(
                rows[name], spec, placement, image.shape,
                detector.confidence, detector.iou, detector.max_detections,
            )  # fmt: skip
            times[name].append(1000 * (perf_counter() - started))
    what = "letterbox, conversion, decoding and NMS"
    known = {"classes": "those of the model", "image_sizes": f"1280x720 to {spec.input_width}"}
    columns = "input", "p50, p95, ms", "detections"
    result = Result("export/processing", what, columns, {"seeds": "none", **known})
    for name in names:
        p50, p95 = np.percentile(times[name], [50, 95])
        result.add(name, f"{p50:.2f}, {p95:.2f}", counts[name])


if __name__ == "__main__":
    main()
