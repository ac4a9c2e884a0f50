# SPDX-License-Identifier: AGPL-3.0-or-later
"""Write a checkpoint as a self-describing ONNX file, kept only if it passes its gates.

python -m training export runs/car/best.pt --output model.onnx --precision int8 --data data.yaml

The precision is in the graph: what ONNX Runtime measures here is what a strongly typed TensorRT
network computes there.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxslim
import torch
from torch import nn
from ultralytics import __version__ as ultralytics_version
from ultralytics.utils.torch_utils import is_qat

from drone_kd.backends import open_backend
from drone_kd.core.model_spec import INPUTS, PRECISIONS, ModelSpec
from drone_kd.core.preprocess import letterbox
from drone_kd.files import file_sha256
from drone_kd.lineage import Lineage
from drone_kd_training.data.dataset import DataError, DataSet, image_paths, load_data, read_sample
from drone_kd_training.evaluation.evaluate import evaluate
from drone_kd_training.export import graph_checks
from drone_kd_training.export.parity import compare
from drone_kd_training.export.quantize import calibrate, names_sha256, quantize, spread
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.models.torch_backend import (
    FlightGraph,
    ImageSize,
    TorchBackend,
    describe,
    trained_imgsz,
)

LICENCE = "AGPL-3.0"
PARITY_FRAMES = 8
# From as many batches of the training split Ultralytics takes the ranges of aware training.
QAT_BATCHES = 8


@dataclass(frozen=True)
class Tolerance:
    """How far a precision may lie from float32: ``share`` of the better rows within ``box_px`` and
    ``score``, and ``points`` of mAP50-95.
    """

    share: float
    box_px: float
    score: float
    points: float


# FP32 differs by the order of sums alone. INT8 moves single boxes far, so that its rows are only
# asked for what a wrong scale would break; how good it is, mAP50-95 says.
TOLERANCES = {
    "fp32": Tolerance(share=1.0, box_px=0.05, score=0.001, points=0.1),
    "fp16": Tolerance(share=0.99, box_px=1.0, score=0.01, points=0.1),
    "int8": Tolerance(share=0.5, box_px=2.0, score=0.02, points=1.0),
    "int8 aware": Tolerance(share=0.5, box_px=2.0, score=0.02, points=0.5),
}


class ExportError(RuntimeError):
    """The exported graph does not pass its gates."""


def export(
    checkpoint: Path,
    output: Path,
    precision: str = "fp32",
    data: str | None = None,
    imgsz: ImageSize | None = None,
    batch: int = 1,
    input_: str = "uint8-nhwc",
    force: bool = False,
    before: Path | None = None,
    licence: str = LICENCE,
    attribution: str = "",
    lineage: Lineage | None = None,
) -> tuple[Path, ModelSpec]:
    """Export ``checkpoint``, check the file, and keep it only if every gate holds.

    Args:
        checkpoint: an Ultralytics detector (.pt); a ``metrics.json`` beside it goes into the
            metadata where ``data`` does not give the file's own figures.
        output: the .onnx to write.
        precision: fp32, fp16 or int8.
        data: a data.yaml: its training split calibrates INT8, its validation split is what files
            and checkpoint are compared on. Without: noise, and no mAP.
        imgsz: of the input: side of a square in pixels, or height and width, such as (384, 640)
            for frames of 16:9; default: the square it was trained at.
        batch: frames per inference.
        input_: a name of `drone_kd.core.model_spec.INPUTS`.
        force: write a file that fails under another name.
        before: the checkpoint from which a quantization-aware one was trained: what its mAP is
            compared with. Such a checkpoint needs it; every other is compared with itself.
        licence, attribution: of the weights and of what they were trained on, for the metadata.
        lineage: what the weights come from, for the metadata; `drone_kd.lineage.descend` makes it.

    Returns:
        The file that was written (not ``output`` if it was forced), and what it says of itself.

    Raises:
        UnusableModelError, DataError, ValueError: input that cannot work.
        ExportError: a gate does not hold; nothing is written.
    """
    if output.suffix != ".onnx":
        raise ValueError(f"--output must end in .onnx, got {output}")
    if precision not in PRECISIONS:
        raise ValueError(f"--precision must be one of {', '.join(PRECISIONS)}, got {precision}")
    if batch < 1:
        raise ValueError(f"--batch must be 1 or more, got {batch}")
    if precision == "int8" and data is None:
        raise ValueError("INT8 is calibrated on your own frames: give --data data.yaml")
    dataset = None if data is None else load_data(data)
    model, saved = load_model(str(checkpoint))
    imgsz = imgsz or trained_imgsz(model)
    stride = int(max(model.stride))
    if (np.atleast_1d(imgsz) % stride).any():
        raise ValueError(f"imgsz must be a multiple of the stride {stride}, got {imgsz}")
    aware = is_qat(model)
    if aware and precision != "int8":
        raise ValueError(f"{checkpoint} was trained for INT8: export it with --precision int8")
    if aware and before is None:
        raise ValueError(f"{checkpoint} was trained for INT8: name the float one with --from")
    frames = image_paths(dataset.train) if precision == "int8" else []
    if not aware:
        frames = spread(frames)
    layout, dtype, colour = INPUTS[input_]
    spec = describe(
        model,
        imgsz,
        batch=batch,
        precision=precision,
        calibration={
            "frames": QAT_BATCHES * saved["train_args"]["batch"] if aware else len(frames),
            "data": dataset.yaml_path.parent.name,
            "names_sha256": names_sha256(frames),
        }
        if frames
        else {},
        source_sha256=file_sha256(checkpoint),
        tools={
            "ultralytics": ultralytics_version,
            "trained_with_ultralytics": str(saved.get("version", "")),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "opset": str(graph_checks.OPSETS[precision]),
        },
        metrics=_metrics(checkpoint.with_name("metrics.json")),
        licence=licence,
        attribution=attribution,
        layout=layout,
        dtype=dtype,
        colour=colour,
        normalisation="in graph: /255" if dtype == "uint8" else "by the caller: /255",
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.stem}.{os.getpid()}.tmp.onnx")
    try:
        write(model, spec, frames, temporary)
        reference = load_model(str(before))[0] if before else model
        spec = _measure(model, reference, spec, dataset, temporary, lineage)
        failed = [name for name, gate in spec.gates.items() if gate["measured"] > gate["limit"]]
        if failed and not force:
            raise ExportError(f"not written: {'; '.join(_failures(spec, failed, temporary))}")
        if failed:
            output = output.with_name(f"{output.stem}.failed{output.suffix}")
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    return output, spec


def write(model: nn.Module, spec: ModelSpec, frames: list[Path], path: Path) -> None:
    """Write the graph that ``spec`` describes, unchecked; ``frames`` calibrate INT8."""
    nchw = spec.layout == "NCHW"
    graph = FlightGraph(model, nchw, half=spec.precision != "fp32")
    _trace(graph, spec, path)
    proto = onnxslim.slim(onnx.load(path))
    if spec.precision == "int8":
        ranges = graph.ranges or (calibrate(FlightGraph(model, nchw), spec, frames),)
        proto = quantize(proto, *ranges)
    _save(proto, spec, path)


def _trace(graph: FlightGraph, spec: ModelSpec, path: Path) -> None:
    frames = torch.zeros(spec.input_shape, dtype=getattr(torch, spec.dtype))
    graph(frames)  # builds the anchor grid, which must not be traced
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes on constants, which are meant to be constant
        torch.onnx.export(
            graph,
            (frames,),
            str(path),
            opset_version=graph_checks.OPSETS[spec.precision],
            input_names=["frames"],
            output_names=["detections"],
            dynamo=False,
        )


def _save(
    proto: onnx.ModelProto, spec: ModelSpec, path: Path, lineage: Lineage | None = None
) -> None:
    origin = {} if lineage is None else lineage.to_metadata()
    onnx.helper.set_model_props(proto, spec.to_metadata() | origin)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def _measure(
    model: nn.Module,
    before: nn.Module,
    spec: ModelSpec,
    dataset: DataSet | None,
    path: Path,
    lineage: Lineage | None,
) -> ModelSpec:
    """Run every gate, and write what it measured into the file, with the lineage."""
    tolerance = TOLERANCES["int8 aware" if is_qat(model) else spec.precision]
    imgsz = spec.input_height, spec.input_width
    backend = TorchBackend(model, imgsz, spec.batch)
    parity = compare(backend, open_backend(path, runtime="onnxruntime"), _frames(dataset, *imgsz))
    share = f"{100 * tolerance.share:g} % of rows"
    gates = {
        "graph problems": (len(graph_checks.problems(onnx.load(path), spec.precision)), 0),
        f"box, px, {share}": (_quantile(parity.box_px, tolerance.share), tolerance.box_px),
        f"score, {share}": (_quantile(parity.score, tolerance.share), tolerance.score),
    }
    metrics = spec.metrics
    if dataset is not None:
        figures = evaluate(path, dataset.yaml_path)
        metrics = {key: figures[key] or 0.0 for key in ("map50_95", "map50")}
        if spec.precision != "fp32":
            whole = evaluate(before, dataset.yaml_path, imgsz=imgsz)["map50_95"] or 0.0
            metrics["map50_95_fp32"] = whole
            loss = round(100 * (whole - metrics["map50_95"]), 3)
            gates["mAP50-95 lost, points"] = (loss, tolerance.points)
    named = {name: {"measured": m, "limit": limit} for name, (m, limit) in gates.items()}
    spec = replace(spec, gates=named, metrics=metrics)
    _save(onnx.load(path), spec, path, lineage)
    return spec


def _quantile(differences: np.ndarray, share: float) -> float:
    worst = float(np.quantile(differences, share, method="higher"))
    return round(min(worst, 1e6), 6)  # where a row is missing: JSON has no infinity


def _failures(spec: ModelSpec, failed: list[str], path: Path) -> list[str]:
    lines = [
        f"{name}: {spec.gates[name]['measured']:.4g}, at most {spec.gates[name]['limit']:g}"
        for name in failed
    ]
    return lines + graph_checks.problems(onnx.load(path), spec.precision)[:1]


def gate_table(spec: ModelSpec) -> str:
    """The gates as text, one line each."""
    lines = [f"{'gate':<28}{'measured':>12}{'at most':>10}"]
    for name, gate in spec.gates.items():
        verdict = "holds" if gate["measured"] <= gate["limit"] else "FAILS"
        lines.append(f"{name:<28}{gate['measured']:>12.4g}{gate['limit']:>10g}  {verdict}")
    return "\n".join(lines)


def _frames(dataset: DataSet | None, height: int, width: int) -> list[np.ndarray]:
    if dataset is None:
        rng = np.random.default_rng(0)
        shape = (PARITY_FRAMES, height, width, 3)
        return list(rng.integers(0, 256, shape, dtype=np.uint8))
    paths = spread(image_paths(dataset.val), PARITY_FRAMES)
    samples = (read_sample(path, len(dataset.names)) for path in paths)
    frames = [letterbox(s.image, width, height)[0] for s in samples if s is not None]
    if not frames:
        raise DataError(f"no usable picture in {dataset.val}")
    return frames


def _metrics(path: Path) -> dict[str, float]:
    if not path.is_file():
        return {}
    student = json.loads(path.read_text(encoding="utf-8"))["student"]
    return {key: student[key] for key in ("map50_95", "map50") if student.get(key) is not None}
