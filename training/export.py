# SPDX-License-Identifier: AGPL-3.0-or-later
"""Write a checkpoint as a self-describing ONNX file, kept only if its numbers are PyTorch's.

python -m training export runs/car/best.pt --output model.onnx
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxslim
import torch
from ultralytics import __version__ as ultralytics_version

from drone_kd.backends import open_backend
from drone_kd.core.preprocess import letterbox
from drone_kd.core.spec import INPUTS, ModelSpec
from training.backend import FlightGraph, TorchBackend, describe, trained_imgsz
from training.data import image_paths, load_data, read_sample
from training.models import load_model
from training.parity import Parity, compare

OPSET = 17  # the newest that every TensorRT from 8.6 on parses
# The largest difference between PyTorch and ONNX Runtime that is put down to the order of
# float32 sums.
BOX_TOLERANCE_PX, SCORE_TOLERANCE = 0.05, 1e-3
LICENCE = "AGPL-3.0"


class ExportError(RuntimeError):
    """The exported graph does not compute what the checkpoint computes."""


def export(
    checkpoint: Path,
    output: Path,
    imgsz: int | None = None,
    data: str | None = None,
    batch: int = 1,
    input_: str = "uint8-nhwc",
    licence: str = LICENCE,
    attribution: str = "",
) -> Parity:
    """Export ``checkpoint``, compare both on frames, and keep ``output`` only if they agree.

    Args:
        checkpoint: an Ultralytics detector (.pt); a ``metrics.json`` beside it goes into the
        metadata.
        output: the .onnx to write.
        imgsz: side of the square input in pixels; default: the one it was trained at.
        data: a data.yaml from whose validation split the frames of the comparison are taken;
        default: noise.
        batch: frames per inference.
        input_: a name of `drone_kd.core.spec.INPUTS`.
        licence, attribution: of the weights and of what they were trained on, for the metadata.

    Raises:
        UnusableModelError, ValueError: input that cannot work.
        ExportError: the two runtimes disagree; nothing is written.
    """
    if Path(output).suffix != ".onnx":
        raise ValueError(f"--output must end in .onnx, got {output}")
    model, saved = load_model(str(checkpoint))
    imgsz = imgsz or trained_imgsz(model)
    if imgsz % int(max(model.stride)):
        raise ValueError(
            f"imgsz must be a multiple of the stride {int(max(model.stride))}, got {imgsz}"
        )
    layout, dtype, colour = INPUTS[input_]
    spec = describe(
        model,
        imgsz,
        batch=batch,
        layout=layout,
        dtype=dtype,
        colour=colour,
        normalisation="in graph: /255" if dtype == "uint8" else "by the caller: /255",
        source_sha256=hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest(),
        tools={
            "ultralytics": ultralytics_version,
            "trained_with_ultralytics": str(saved.get("version", "")),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "opset": str(OPSET),
        },
        metrics=_metrics(Path(checkpoint).with_name("metrics.json")),
        licence=licence,
        attribution=attribution,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.stem}.{os.getpid()}.tmp.onnx")
    try:
        _write(FlightGraph(model, nchw=layout == "NCHW"), spec, temporary)
        reference = TorchBackend(model, imgsz, batch)
        parity = compare(reference, open_backend(temporary), _frames(data, imgsz))
        box_px, score = float(parity.box_px.max()), float(parity.score.max())
        if not (box_px <= BOX_TOLERANCE_PX and score <= SCORE_TOLERANCE):
            raise ExportError(
                f"ONNX Runtime differs from PyTorch by {box_px:.4g} px and "
                f"{score:.4g} in score, more than {BOX_TOLERANCE_PX} px and "
                f"{SCORE_TOLERANCE}: not written"
            )
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    return parity


def _write(graph: FlightGraph, spec: ModelSpec, path: Path) -> None:
    frames = torch.zeros(spec.input_shape, dtype=getattr(torch, spec.dtype))
    graph(frames)  # builds the anchor grid, which must not be traced
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes on constants, which are meant to be constant
        torch.onnx.export(
            graph,
            (frames,),
            str(path),
            opset_version=OPSET,
            input_names=["frames"],
            output_names=["detections"],
            dynamo=False,
        )
    model = onnxslim.slim(onnx.load(path))
    onnx.helper.set_model_props(model, spec.to_metadata())
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _frames(data: str | None, imgsz: int, count: int = 8) -> list[np.ndarray]:
    if data is None:
        rng = np.random.default_rng(0)
        return [rng.integers(0, 256, (imgsz, imgsz, 3), dtype=np.uint8) for _ in range(count)]
    dataset = load_data(data)
    samples = (read_sample(path, len(dataset.names)) for path in image_paths(dataset.val)[:count])
    return [letterbox(s.image, imgsz, imgsz)[0] for s in samples if s is not None]


def _metrics(path: Path) -> dict[str, float]:
    if not path.is_file():
        return {}
    student = json.loads(path.read_text(encoding="utf-8"))["student"]
    return {key: student[key] for key in ("map50_95", "map50") if student.get(key) is not None}


def runtime_version() -> str:
    """The version of ONNX Runtime that the comparison ran on."""
    return onnxruntime.__version__
