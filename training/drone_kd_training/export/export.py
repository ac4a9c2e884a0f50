# SPDX-License-Identifier: AGPL-3.0-or-later
"""Export of a checkpoint to an ONNX file, kept only if it passes its gates.

    drone-kd export runs/car/best.pt --output model.onnx --precision int8 --data data.yaml

Steps: check the arguments, describe the model, write the graph, measure the gates, keep the file.
The precision is part of the graph, so ONNX Runtime here computes what a strongly typed TensorRT
network computes.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnxslim
import torch
from torch import nn
from ultralytics import __version__ as ultralytics_version
from ultralytics.utils.torch_utils import is_qat

from drone_kd.backends import open_backend
from drone_kd.backends.golden import write_golden
from drone_kd.core.model_spec import INPUTS, PRECISIONS, ModelSpec
from drone_kd.core.preprocess import letterbox
from drone_kd.files import check_writable, file_sha256, write_bytes
from drone_kd.lineage import Lineage, ancestry_metadata
from drone_kd.media.image_files import read_image
from drone_kd.parsing import read_json
from drone_kd.paths import selftest_image_path
from drone_kd.progress import print_line
from drone_kd.text import one_line
from drone_kd_training.data.dataset import DataError, DataSet, image_paths, load_data, read_sample
from drone_kd_training.data.repeated_images import repeated_note
from drone_kd_training.export import graph_checks
from drone_kd_training.export.calibration import calibrate, calibration_frames, spread
from drone_kd_training.export.flight_gates import fly, measure
from drone_kd_training.export.gate_outcomes import FAILS, outcome
from drone_kd_training.export.golden_images import golden_images
from drone_kd_training.export.parity import compare
from drone_kd_training.export.quantize import quantize
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.models.torch_backend import (
    ExportGraph,
    ImageSize,
    TorchBackend,
    make_spec,
    trained_imgsz,
    without_quantizers,
)

LICENCE = "AGPL-3.0"
PARITY_FRAMES = 8


@dataclass(frozen=True)
class Tolerance:
    """Largest differences of a precision from float32.

    Attributes:
        share: share of the better half of the rows that must lie within ``box_px`` and ``score``.
        box_px: largest difference of a box coordinate, in input pixels.
        score: largest difference of a score, in [0, 1].
    """

    share: float
    box_px: float
    score: float


# Of the network's rows, most of them background. FP32 differs by the order of sums only. INT8
# moves single boxes far, so its row gates only catch wrong scales; `flight_gates` judge the rest.
TOLERANCES = {
    "fp32": Tolerance(share=1.0, box_px=0.05, score=0.003),
    "fp16": Tolerance(share=0.99, box_px=1.0, score=0.01),
    "int8": Tolerance(share=0.5, box_px=2.0, score=0.02),
}


class ExportError(RuntimeError):
    """Exported graph that fails a gate."""


def export(
    checkpoint: Path,
    output: Path,
    precision: str = "fp32",
    data: str | None = None,
    imgsz: ImageSize | None = None,
    batch: int = 1,
    input_: str = "uint8-nhwc",
    force: bool = False,
    licence: str = LICENCE,
    attribution: str = "",
    lineage: Lineage | None = None,
    ancestry: str = "",
    golden: bool = True,
) -> tuple[Path, ModelSpec]:
    """Export ``checkpoint``, check the file, and keep it only if no gate fails.

    Args:
        checkpoint: an Ultralytics detector (.pt); without ``data`` the metrics come from a
            ``metrics.json`` beside it.
        output: the .onnx to write.
        precision: fp32, fp16 or int8.
        data: a data.yaml: its training split calibrates INT8, its validation split compares file
            and checkpoint. Without it the comparison runs on noise, and no detection is compared.
        imgsz: side of a square in pixels, or height and width, such as (384, 640) for 16:9 frames
            (default: the square it was trained at).
        batch: frames per inference.
        input_: a name of `drone_kd.core.model_spec.INPUTS`.
        force: write a file that fails a gate as NAME.failed.onnx.
        licence, attribution: of the weights, and credit that the training data ask for.
        lineage: origin of the weights; see `drone_kd.lineage.descend`.
        ancestry: one line on teachers and their data, if these limit the use of the weights.
        golden: store golden images, which every runtime must reproduce: parts of validation
            images, or without ``data`` of an image of the package.

    Returns the file that was written (not ``output`` if it was forced) and its metadata. Raises
    UnusableModelError if ``checkpoint`` is not a detector, DataError if ``data`` cannot be used,
    ValueError for arguments that do not go together, OSError if ``output`` cannot be written, and
    ExportError if a gate fails; then nothing is written.
    """
    _check_arguments(output, precision, batch, data)
    origin = ancestry_metadata(ancestry) | ({} if lineage is None else lineage.to_metadata())
    check_writable(output)
    dataset = load_data(data) if data is not None else None
    if dataset is not None and (note := repeated_note(dataset)):
        print_line(f"NOTE {note}")
    model, saved = load_model(str(checkpoint))
    imgsz = imgsz or trained_imgsz(model)
    _check_model(checkpoint, model, imgsz, precision)
    frames, calibration = calibration_frames(model, saved, precision, dataset)
    layout, dtype, colour = INPUTS[input_]
    spec = make_spec(
        model,
        imgsz,
        batch=batch,
        precision=precision,
        calibration=calibration,
        source_sha256=file_sha256(checkpoint),
        tools=_tools(saved, precision),
        metrics=_training_metrics(checkpoint.with_name("metrics.json")),
        licence=licence,
        attribution=attribution,
        layout=layout,
        dtype=dtype,
        colour=colour,
        normalisation="in graph: /255" if dtype == "uint8" else "by the caller: /255",
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder, output.name)
        write(model, spec, frames, draft)
        spec = _measure(model, spec, dataset, draft)
        images = _golden_images(dataset, draft) if golden else {}
        _save(_read(draft), spec, draft, origin | images)
        failures = _failures(spec, draft)
        if failures and not force:
            raise ExportError(f"not written: {'; '.join(failures)}")
        if failures:
            output = output.with_name(f"{output.stem}.failed{output.suffix}")
        write_bytes(output, draft.read_bytes())
    return output, spec


def _check_arguments(output: Path, precision: str, batch: int, data: str | None) -> None:
    if output.suffix != ".onnx":
        raise ValueError(f"--output must end in .onnx, got {output}")
    if precision not in PRECISIONS:
        raise ValueError(f"--precision must be one of {', '.join(PRECISIONS)}, got {precision}")
    if batch < 1:
        raise ValueError(f"--batch must be 1 or more, got {batch}")
    if precision == "int8" and data is None:
        raise ValueError("INT8 is calibrated on your own frames: give --data data.yaml")


def _check_model(checkpoint: Path, model: nn.Module, imgsz: ImageSize, precision: str) -> None:
    stride = int(cast(torch.Tensor, model.stride).max())
    if (np.atleast_1d(imgsz) % stride).any():
        raise ValueError(f"--imgsz must be a multiple of the stride {stride}, got {imgsz}")
    if is_qat(model) and precision != "int8":
        raise ValueError(f"{checkpoint} was trained for INT8: export it with --precision int8")


def _tools(saved: dict, precision: str) -> dict[str, str]:
    return {
        "ultralytics": ultralytics_version,
        "trained_with_ultralytics": one_line(saved.get("version", ""), 40),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "opset": str(graph_checks.OPSETS[precision]),
    }


def _training_metrics(path: Path) -> dict[str, float]:
    if not path.is_file():
        return {}
    metrics = read_json(path)
    student = metrics.get("student") if isinstance(metrics, dict) else None
    if not isinstance(student, dict):
        raise ValueError(f"{one_line(path)}: expected the figures of a student, got others")
    return {key: student[key] for key in ("map50_95", "map50") if student.get(key) is not None}


def write(model: nn.Module, spec: ModelSpec, frames: list[Path], path: Path) -> None:
    """Write the graph that ``spec`` describes, without measuring any gate.

    ``frames``: images that calibrate INT8. Raises DataError if none of them can be read.
    """
    nchw = spec.layout == "NCHW"
    graph = ExportGraph(model, nchw, half=spec.precision != "fp32")
    _trace(graph, spec, path)
    proto = onnxslim.slim(_read(path))
    if spec.precision == "int8":
        ranges = graph.ranges or (calibrate(ExportGraph(model, nchw), spec, frames), None)
        proto = quantize(proto, *ranges)
    _save(proto, spec, path)


def _read(path: Path) -> onnx.ModelProto:
    """Return a graph of this export, all in one file."""
    return onnx.load_model_from_string(path.read_bytes())


def _trace(graph: ExportGraph, spec: ModelSpec, path: Path) -> None:
    frames = torch.zeros(spec.input_shape, dtype=getattr(torch, spec.dtype))
    graph(frames)  # builds the anchor grid, which must not be traced
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes on values that are constant on purpose
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
    proto: onnx.ModelProto, spec: ModelSpec, path: Path, origin: Mapping[str, str] | None = None
) -> None:
    onnx.helper.set_model_props(proto, {**spec.to_metadata(), **(origin or {})})
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def _measure(model: nn.Module, spec: ModelSpec, dataset: DataSet | None, path: Path) -> ModelSpec:
    """Return ``spec`` with gates and metrics."""
    tolerance = TOLERANCES[spec.precision]
    imgsz = spec.input_height, spec.input_width
    backend = TorchBackend(model, imgsz, spec.batch)
    frames = _parity_frames(dataset, *imgsz)
    file = open_backend(path, runtime="onnxruntime")
    parity = compare(backend, file, frames)
    share = f"{100 * tolerance.share:g} % of rows"
    gates: dict[str, tuple[float, float]] = {
        "graph problems": (len(graph_checks.problems(_read(path), spec.precision)), 0),
        f"box, px, {share}": (_quantile(parity.box_px, tolerance.share), tolerance.box_px),
        f"score, {share}": (_quantile(parity.score, tolerance.share), tolerance.score),
    }
    named = {name: {"measured": m, "limit": limit} for name, (m, limit) in gates.items()}
    if dataset is None:
        return replace(spec, gates=named)
    reference = TorchBackend(without_quantizers(model), imgsz)
    flight = fly(file, reference, dataset)
    in_flight, metrics = measure(flight, "int8 aware" if is_qat(model) else spec.precision)
    return replace(spec, gates=named | in_flight, metrics=metrics)


def _golden_images(dataset: DataSet | None, path: Path) -> dict[str, str]:
    """Return the golden images of a file as an entry of its metadata."""
    file = open_backend(path, runtime="onnxruntime")
    height, width = file.spec.input_height, file.spec.input_width
    if dataset is None:
        frames = [letterbox(read_image(selftest_image_path()), width, height)[0]]
    else:
        frames = _parity_frames(dataset, height, width)
    return write_golden(golden_images(file, frames))


def _parity_frames(dataset: DataSet | None, height: int, width: int) -> list[np.ndarray]:
    """Return letterboxed validation frames, or noise: uint8 (height, width, 3) each."""
    if dataset is None:
        rng = np.random.default_rng(0)
        shape = (PARITY_FRAMES, height, width, 3)
        return list(rng.integers(0, 256, shape, dtype=np.uint8))
    paths = spread(image_paths(dataset.val), PARITY_FRAMES)
    samples = (read_sample(path, len(dataset.names)) for path in paths)
    frames = [letterbox(s.image, width, height)[0] for s in samples if s is not None]
    if not frames:
        raise DataError(f"no usable image in {dataset.val}")
    return frames


def _quantile(differences: np.ndarray, share: float) -> float:
    worst = float(np.quantile(differences, share, method="higher"))
    return round(min(worst, 1e6), 6)  # a missing row is infinite, which JSON does not know


def _failures(spec: ModelSpec, path: Path) -> list[str]:
    """Return one text per gate that fails, and the first problem of the graph."""
    lines = [
        f"{name}: {gate['measured']:.4g}, at most {gate['limit']:g}"
        for name, gate in spec.gates.items()
        if outcome(gate) == FAILS
    ]
    return lines + graph_checks.problems(_read(path), spec.precision)[:1]
