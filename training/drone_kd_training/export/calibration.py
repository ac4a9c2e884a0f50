# SPDX-License-Identifier: AGPL-3.0-or-later
"""INT8 calibration: which frames, and the largest input of each convolution on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from ultralytics.utils.torch_utils import is_qat

from drone_kd.core.model_spec import ModelSpec
from drone_kd.core.preprocess import letterbox, network_input
from drone_kd.media.image_files import SourceError, read_image
from drone_kd.progress import track
from drone_kd_training.data.dataset import DataError, DataSet, image_paths
from drone_kd_training.models.torch_backend import ExportGraph

CALIBRATION_FRAMES = 512
# Training batches from which Ultralytics takes the ranges of quantization-aware training.
QAT_BATCHES = 8


def calibration_frames(
    model: nn.Module, saved: dict, precision: str, dataset: DataSet | None
) -> tuple[list[Path], dict[str, int | str]]:
    """Return the calibration frames of an INT8 export, and their entry in the metadata."""
    if precision != "int8" or dataset is None:
        return [], {}
    frames = image_paths(dataset.train)
    if is_qat(model):
        count = QAT_BATCHES * int(saved["train_args"]["batch"])
    else:
        frames = spread(frames)
        count = len(frames)
    # Its folder may be named after a user.
    name = dataset.yaml_path.name
    return frames, {"frames": count, "data": name, "names_sha256": names_sha256(frames)}


def spread(paths: list[Path], count: int = CALIBRATION_FRAMES) -> list[Path]:
    """Return up to ``count`` paths, evenly spaced: neighbours are frames of one flight."""
    count = min(count, len(paths))
    return [paths[i * len(paths) // count] for i in range(count)]


def names_sha256(paths: list[Path]) -> str:
    """Return the SHA-256 of the file names, one per line."""
    return hashlib.sha256("\n".join(path.name for path in paths).encode()).hexdigest()


def calibrate(graph: ExportGraph, spec: ModelSpec, frames: list[Path]) -> dict[str, float]:
    """Return the largest input magnitude of each convolution, by the name of its weights.

    ``graph`` is float32. ``frames`` run one at a time; unreadable ones are skipped. Raises
    DataError if none can be read.
    """
    largest: dict[str, float] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor]) -> None:
            largest[name] = max(largest.get(name, 0.0), float(inputs[0].abs().max()))

        return hook

    hooks = [
        module.register_forward_pre_hook(watch(f"{name}.weight"))
        for name, module in graph.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        for path in track(frames, "Calibrate INT8", "image"):
            try:
                pixels = read_image(path)
            except SourceError:
                continue
            canvas, _ = letterbox(pixels, spec.input_width, spec.input_height)
            with torch.inference_mode():
                graph(torch.from_numpy(network_input(canvas[np.newaxis], spec)))
    finally:
        for hook in hooks:
            hook.remove()
    if not largest:
        raise DataError(f"calibration: none of {len(frames)} images is readable: {frames[0]}")
    return largest
