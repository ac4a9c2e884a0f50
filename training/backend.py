# SPDX-License-Identifier: AGPL-3.0-or-later
"""The graph that is exported, and the same graph run by torch as a backend of
`drone_kd.detector.Detector`.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn

from drone_kd.core.spec import ModelSpec
from training.models import class_names


class FlightGraph(nn.Module):
    """What flies: uint8 NHWC BGR frames in, decoded boxes out; colour and scale are in the graph.

    Input uint8 (B, H, W, 3). Output of a dense head: float32 (B, 4 + C, N) with cx, cy, w, h in
    input pixels and class probabilities; of an end-to-end head: (B, K, 6) with x1, y1, x2, y2,
    score, class.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = deepcopy(model).float().eval().fuse(verbose=False)
        self.model.model[-1].export = True
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)

    def forward(self, frames: Tensor) -> Tensor:
        return self.model(frames.permute(0, 3, 1, 2).flip(1).float() / 255)


class TorchBackend:
    """Runs an Ultralytics detector behind the interface of `drone_kd.backends.Backend`."""

    name = "torch"

    def __init__(self, model: nn.Module, imgsz: int | None = None) -> None:
        """``imgsz``: side of the square input in pixels; default: the one that the model was
        trained at.
        """
        self.imgsz = imgsz or trained_imgsz(model)
        self.graph = FlightGraph(model)
        # No file stands behind this graph yet, so there is nothing to hash or to license.
        self.spec = describe(
            model, self.imgsz, source_sha256="0" * 64, tools={}, metrics={}, licence=""
        )

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Run uint8 (B, H, W, 3) frames; returns what the exported graph returns."""
        with torch.inference_mode():
            return self.graph(torch.from_numpy(np.ascontiguousarray(batch))).numpy()


def trained_imgsz(model: nn.Module) -> int:
    """The square input that a checkpoint was trained at (640, Ultralytics' default, where it
    does not say).
    """
    args = getattr(model, "args", None)
    size = args.get("imgsz") if isinstance(args, dict) else getattr(args, "imgsz", None)
    size = size[0] if isinstance(size, (list, tuple)) else size
    return int(size or 640)


def describe(model: nn.Module, imgsz: int, **extra) -> ModelSpec:
    """What the exported file says of itself; ``extra``: further fields of `ModelSpec`."""
    return ModelSpec(
        classes=class_names(model),
        input_width=imgsz,
        input_height=imgsz,
        head="end2end" if model.model[-1].end2end else "dense",
        **extra,
    )
