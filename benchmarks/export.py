"""Accuracy, size, time and gates of an export in each precision.

    python -m benchmarks.export best.pt --data data.yaml --name hit-uav [--aware QAT/best.pt]

Exports the checkpoint in every precision, even if a gate fails. Tables: one row per file, timed in
turn in one run; the gates of each; their processor time beside that of the gates before them,
which were the mAP of file and checkpoint. Last, once for all checkpoints: preprocessing and
postprocessing of a 1280x720 frame with uint8 and float32 input. --aware is the result of
`distill --quantize int8 --from best.pt`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time

import numpy as np

from benchmarks.runs import Result
from drone_kd.backends import open_backend
from drone_kd.core.model_spec import ModelSpec
from drone_kd.core.postprocess import decode
from drone_kd.core.preprocess import letterbox, network_input
from drone_kd.detector import load_detector
from drone_kd.progress import track
from drone_kd.simulation.scene import FlightPlan
from drone_kd.simulation.scene import fly as fly_scene
from drone_kd_training.data.dataset import DataSet, image_paths, load_data, read_sample
from drone_kd_training.evaluation.evaluate import evaluate
from drone_kd_training.export.calibration import spread
from drone_kd_training.export.export import export
from drone_kd_training.export.flight_gates import GROUP, fly, measure
from drone_kd_training.export.gate_outcomes import FAILS, HOLDS, NOT_ENOUGH, outcome
from drone_kd_training.export.parity import compare
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.models.torch_backend import TorchBackend, without_quantizers

ROUNDS = 40
HOST_ROUNDS = 400
DRIFT_FRAMES = 20
SEEN = 0.25  # drift counts boxes that a detector would report
GATES = ("precision", "gate", "of", "measured", "low", "high", "limit", "count", "outcome")
OUTCOMES = (HOLDS, NOT_ENOUGH, FAILS)


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--aware", type=Path, help="quantization-aware checkpoint trained from it")
    parser.add_argument("--imgsz", type=int, help="square input (default: as trained)")
    parser.add_argument("--name", default="new", help="of the CSVs in benchmarks/export/")
    parser.add_argument("--only", choices=("gates", "processing"), help="a part of the tables")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if a.only in (None, "gates"):
            precisions(a, Path(folder))
        if a.only in (None, "processing"):
            host_time(a, Path(folder))


@dataclass(frozen=True)
class Exported:
    """A file with its checkpoint; ``precision``: a key of `flight_gates.LIMITS`."""

    precision: str
    checkpoint: Path
    path: Path
    spec: ModelSpec


def precisions(a: argparse.Namespace, folder: Path) -> None:
    """Export in each precision and write the tables of the files, their gates and their times."""
    plan = [(name, a.checkpoint) for name in ("fp32", "fp16", "int8")]
    if a.aware:
        plan.append(("int8 aware", a.aware))
    files: list[Exported] = []
    for name, checkpoint in plan:
        draft = folder / f"{len(files)}.onnx"
        path, spec = export(checkpoint, draft, name[:4], a.data, a.imgsz, force=True)
        files.append(Exported(name, checkpoint, path, spec))
        print(f"{name}: {path.name}", flush=True)
    dataset = load_data(a.data)
    known = {
        "seeds": "none",
        "classes": " ".join(dataset.names),
        "image_sizes": str(files[0].spec.input_width),
    }
    file_table(a, files, dataset, known)
    gates = Result(f"export/{a.name}-gates", "gates of each precision", GATES, known)
    for file in files:
        for name, gate in file.spec.gates.items():
            kind, _, group = name.partition(GROUP)
            low, high = (f"{gate[key]:.4g}" if key in gate else "" for key in ("low", "high"))
            figures = f"{gate['measured'] + 0.0:.4g}", low, high, f"{gate['limit']:g}"
            count = f"{gate['count']:.0f}" if "count" in gate else ""
            gates.add(file.precision, kind, group, *figures, count, outcome(gate))
    columns = "precision", "images", "before, s", "now, s", "now / before"
    times = Result(f"export/{a.name}-time", "processor time of the gates", columns, known)
    for file in files:
        images, before, now = gate_time(a, file, dataset)
        times.add(file.precision, images, f"{before:.1f}", f"{now:.1f}", f"{now / before:.2f}")


def file_table(
    a: argparse.Namespace, files: list[Exported], dataset: DataSet, known: dict[str, str]
) -> None:
    """Write one row per file."""
    backends = {file.precision: open_backend(file.path, runtime="onnxruntime") for file in files}
    whole = TorchBackend(load_model(str(a.checkpoint))[0], a.imgsz)
    paths = spread(image_paths(dataset.val), DRIFT_FRAMES)
    samples = [read_sample(path, len(dataset.names)) for path in paths]
    frames = [
        letterbox(s.image, whole.spec.input_width, whole.spec.input_height)[0]
        for s in samples
        if s is not None
    ]
    times: dict[str, list[float]] = {name: [] for name in backends}
    for number in track(range(ROUNDS), "Time", "round"):
        for name, backend in backends.items():
            frame = frames[number % len(frames)][np.newaxis]
            started = perf_counter()
            backend.infer(frame)
            times[name].append(1000 * (perf_counter() - started))
    columns = "precision", "mAP50-95", "MB", "ONNX Runtime p50, ms", "drift p50, p99, px"
    calibrated = next(file.spec for file in files if file.precision == "int8").calibration[
        "frames"
    ]
    what = f"precisions; drift over {len(frames)} frames, calibrated on {calibrated} frames"
    result = Result(f"export/{a.name}", what, [*columns, "gates", "RTX"], known)
    for file in files:
        name, spec = file.precision, file.spec
        drift = compare(whole, backends[name], frames, least_score=SEEN).box_px
        p50, p99 = np.quantile(drift, [0.5, 0.99], method="higher") if len(drift) else (0, 0)
        score, size = 100 * spec.metrics["map50_95"], file.path.stat().st_size / 1e6
        cells = f"{score:.2f}", f"{size:.2f}", f"{np.median(times[name]):.1f}"
        found = Counter(outcome(gate) for gate in spec.gates.values())
        gates = "; ".join(f"{found[kind]} {kind}" for kind in OUTCOMES if found[kind])
        result.add(name, *cells, f"{p50:.3f}, {p99:.3f}", gates, rtx_verdict(file.path))


def gate_time(a: argparse.Namespace, file: Exported, dataset: DataSet) -> tuple[int, float, float]:
    """Return the number of images, and the processor seconds of the previous and present gates.

    Previous: mAP of the file and, unless it is FP32, of its checkpoint.
    """
    model = load_model(str(file.checkpoint))[0]
    backend = open_backend(file.path, runtime="onnxruntime")
    size = file.spec.input_height, file.spec.input_width
    reference = TorchBackend(without_quantizers(model), size)
    started = process_time()
    evaluate(backend, a.data)
    if file.precision != "fp32":
        evaluate(reference, a.data)
    middle = process_time()
    flight = fly(backend, reference, dataset)
    measure(flight, file.precision)
    return len(flight.frames), middle - started, process_time() - middle


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
