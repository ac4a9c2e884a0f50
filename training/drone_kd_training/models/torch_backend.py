# SPDX-License-Identifier: AGPL-3.0-or-later
"""The graph that is exported, and the same graph run by torch as a backend of
`drone_kd.detector.Detector`.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert
from ultralytics.utils.torch_utils import is_qat, strip_qat

from drone_kd.core.model_spec import ModelSpec
from drone_kd_training.models.checkpoints import class_names

# Side of a square in pixels, or height and width, as Ultralytics has it.
ImageSize = int | tuple[int, int]
# Rows that a dense head gives. Measured on three data sets (benchmarks/export.md).
CANDIDATES = 1000


class FlightGraph(nn.Module):
    """What flies: frames in, rows out; colour, scale, decoding and the choice of rows are in the
    graph.

    Input uint8 (B, H, W, 3) BGR, or with ``nchw`` float32 (B, 3, H, W) RGB from 0 to 1. Output
    float32 (B, K, 6): x1, y1, x2, y2 in input pixels, score, class; best first. Of a dense head
    the best class of the ``candidates`` best anchors, of an end-to-end head its detections.

    With ``half`` the network computes in float16, but for the head's last convolutions and all
    that follows them: logits and pixels need the digits. Of a quantization-aware checkpoint it is
    the network without its quantizers, whose ranges are in ``ranges`` (see `trained_ranges`).
    """

    def __init__(
        self,
        model: nn.Module,
        nchw: bool = False,
        half: bool = False,
        candidates: int = CANDIDATES,
    ) -> None:
        super().__init__()
        self.model = deepcopy(model).float().eval().fuse(verbose=False)
        self.nchw = nchw
        self.dtype = torch.float16 if half else torch.float32
        head = self.model.model[-1]
        head.export = True
        self.dense = not head.end2end
        if self.dense:
            head.xyxy = True
            # Ultralytics' own selection, told to give the best class of each anchor.
            head.agnostic_nms, head.max_det = True, candidates
        self.ranges = None
        if half:
            self.ranges = trained_ranges(self)
            strip_qat(self.model)
            self.model.half()
            head.dfl.float()
            for branch in (*head.cv2, *head.cv3):
                branch[-1] = nn.Sequential(_ToFloat(), branch[-1].float())
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)

    def forward(self, frames: Tensor) -> Tensor:
        # TensorRT takes uint8 as an input, and can do nothing with it but cast it.
        frames = frames.to(self.dtype)
        if not self.nchw:
            frames = frames.permute(0, 3, 1, 2).flip(1) / 255
        found = self.model(frames)
        return self.model.model[-1].postprocess(found.permute(0, 2, 1)) if self.dense else found


def trained_ranges(graph: nn.Module) -> tuple[dict, dict] | None:
    """What a quantization-aware checkpoint was trained with; None for every other.

    By the name of a convolution's weights: the largest magnitude that enters it, and those of its
    weights, float32 (output channels,).
    """
    if not is_qat(graph):
        return None
    inputs, weights = {}, {}
    for name, module in graph.named_modules():
        # (Ultralytics trains with a quantizer before each pooling, too, which changes no range.)
        if isinstance(module, nn.Conv2d) and module.input_quantizer.is_enabled:
            inputs[f"{name}.weight"] = float(module.input_quantizer.amax)
            weights[f"{name}.weight"] = module.weight_quantizer.amax.flatten().cpu().numpy()
    return inputs, weights


class _ToFloat(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.float()


# No file stands behind a graph yet, so there is nothing to hash or to license.
_NO_FILE = {"source_sha256": "0" * 64, "tools": {}, "metrics": {}, "licence": ""}


class TorchBackend:
    """Runs an Ultralytics detector behind the interface of `drone_kd.backends.Backend`."""

    name = "torch"
    fallback = ""

    def __init__(
        self,
        model: nn.Module,
        imgsz: ImageSize | None = None,
        batch: int = 1,
        device: str = "cpu",
    ) -> None:
        """``imgsz``: of the input; default: the square that the model was trained at. ``batch``:
        frames per inference. ``device``: as torch names it.
        """
        self.device = device
        self.graph = FlightGraph(model).to(device)
        self.spec = describe(model, imgsz or trained_imgsz(model), batch=batch, **_NO_FILE)

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Run uint8 (B, H, W, 3) frames; returns what the exported graph returns."""
        with torch.inference_mode():
            return self.graph(torch.tensor(batch, device=self.device)).cpu().numpy()


class BoxBackend:
    """Runs RT-DETR behind the same interface: its queries are the rows."""

    name = "torch"
    fallback = ""

    def __init__(self, model: nn.Module, device: str = "cpu") -> None:
        self.device = device
        self.model = model.to(device).eval()
        self.spec = ModelSpec(
            classes=class_names(model),
            input_width=trained_imgsz(model),
            input_height=trained_imgsz(model),
            head="end2end",
            **_NO_FILE,
        )

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Run uint8 (B, H, W, 3) BGR frames; returns float32 (B, queries, 6), best first."""
        with torch.inference_mode():
            frames = torch.tensor(batch, device=self.device).permute(0, 3, 1, 2).flip(1) / 255
            boxes, logits = self.model(frames)[1][:2]  # of every layer; the last counts
            scores, class_ids = logits[-1].sigmoid().max(dim=-1)
            size = torch.tensor([*batch.shape[2:0:-1]] * 2, device=self.device)
            xyxy = box_convert(boxes[-1], "cxcywh", "xyxy").clamp(0, 1) * size
            rows = torch.cat([xyxy, scores[..., None], class_ids[..., None]], dim=-1)
            order = scores.argsort(dim=-1, descending=True, stable=True)
            return rows.gather(1, order[..., None].expand_as(rows)).cpu().numpy()


def trained_imgsz(model: nn.Module) -> int:
    """The square input that a checkpoint was trained at (640, Ultralytics' default, where it
    does not say).
    """
    args = getattr(model, "args", None)
    size = args.get("imgsz") if isinstance(args, dict) else getattr(args, "imgsz", None)
    size = size[0] if isinstance(size, (list, tuple)) else size
    return int(size or 640)


def describe(model: nn.Module, imgsz: ImageSize, **extra) -> ModelSpec:
    """What the exported file says of itself; ``extra``: further fields of `ModelSpec`."""
    height, width = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
    return ModelSpec(
        classes=class_names(model),
        input_width=width,
        input_height=height,
        head="end2end" if model.model[-1].end2end else "dense",
        **extra,
    )
