# SPDX-License-Identifier: AGPL-3.0-or-later
"""The exported graph as a torch module, and torch as a backend of `drone_kd.detector.Detector`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert
from ultralytics.utils.torch_utils import is_qat, strip_qat

from drone_kd.core.model_spec import ModelSpec
from drone_kd.text import one_line
from drone_kd_training.models.checkpoints import UnusableModelError, class_names, detect_head

# Side of a square in pixels, or height and width, as in Ultralytics.
ImageSize = int | tuple[int, int]
# By the name of a convolution's weights: the largest input magnitude; the largest weight magnitude
# per output channel, float32 (C,).
QuantizationRanges = tuple[dict[str, float], dict[str, np.ndarray]]
# Output rows of a dense head: as good as all of them on three data sets (benchmarks/export.md).
CANDIDATES = 500
# Side of a square input, in pixels.
MAX_IMGSZ = 8192
# A graph without a file has no hash and no licence yet.
_NO_FILE: dict[str, Any] = {"source_sha256": "0" * 64, "tools": {}, "metrics": {}, "licence": ""}


class ExportGraph(nn.Module):
    """Deployed graph: preprocessing, network, decoding and candidate selection.

    Input: uint8 (B, H, W, 3) BGR, or with ``nchw`` float32 (B, 3, H, W) RGB in [0, 1]. Output:
    float32 (B, K, 6) as x1, y1, x2, y2 in input pixels, score, class; best first. A dense head
    gives the best class of its K = ``candidates`` best anchors. A head with a one-to-one branch
    (YOLO26) gives that branch's detections, K ≤ 300, which need no NMS.

    ``half``: compute in float16, except the last convolutions of the head and all that follows
    them: logits and pixel coordinates need float32. The quantizers of a quantization-aware
    checkpoint are removed; ``ranges`` keeps what they learned (see `trained_ranges`), and is None
    without ``half``. The model is copied.
    """

    def __init__(
        self,
        model: nn.Module,
        nchw: bool = False,
        half: bool = False,
        candidates: int = CANDIDATES,
    ) -> None:
        super().__init__()
        self.model = cast(Any, deepcopy(model)).float().eval()
        head = detect_head(self.model)
        self.dense = not is_end_to_end(model)
        if not self.dense:
            head.end2end = True  # before fusing, which removes the branch that is not used
        self.model = self.model.fuse(verbose=False)
        self.nchw = nchw
        self.dtype = torch.float16 if half else torch.float32
        head.export = True
        if self.dense:
            head.xyxy = True
            # Ultralytics' own selection, set to give the best class of each anchor.
            head.agnostic_nms, head.max_det = True, candidates
        self.ranges: QuantizationRanges | None = None
        if half:
            self.ranges = trained_ranges(self)
            strip_qat(self.model)
            self.model.half()
            head.dfl.float()
            boxes, scores = (head.one2many if self.dense else head.one2one).values()
            for branch in (*boxes, *scores):
                branch[-1] = nn.Sequential(_ToFloat(), branch[-1].float())
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)

    def forward(self, frames: Tensor) -> Tensor:
        """Run a batch of frames; see the class for shapes."""
        # TensorRT accepts a uint8 input only if a cast follows.
        frames = frames.to(self.dtype)
        if not self.nchw:
            frames = frames.permute(0, 3, 1, 2).flip(1) / 255
        rows = self.model(frames)
        if not self.dense:
            return rows
        return detect_head(self.model).postprocess(rows.permute(0, 2, 1))


def is_end_to_end(model: nn.Module) -> bool:
    """Return whether a detector's head has a one-to-one branch, whose detections need no NMS."""
    return getattr(detect_head(model), "one2one_cv2", None) is not None


def trained_ranges(graph: nn.Module) -> QuantizationRanges | None:
    """Return the ranges of a quantization-aware model; None for any other model."""
    if not is_qat(graph):
        return None
    inputs, weights = {}, {}
    for name, module in graph.named_modules():
        # Ultralytics also quantizes before each pooling, which changes no range.
        quantizer = cast(Any, getattr(module, "input_quantizer", None))
        if isinstance(module, nn.Conv2d) and quantizer.is_enabled:
            inputs[f"{name}.weight"] = float(quantizer.amax)
            amax = cast(Any, module.weight_quantizer).amax
            weights[f"{name}.weight"] = amax.flatten().cpu().numpy()
    return inputs, weights


def without_quantizers(model: nn.Module) -> nn.Module:
    """Return a model without its quantizers, copied if it has any: its weights in float32."""
    if not is_qat(model):
        return model
    plain = deepcopy(model)
    strip_qat(plain)
    return plain


class _ToFloat(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.float()


@contextmanager
def _damage_named() -> Iterator[None]:
    """Raise UnusableModelError where a layer lacks what its class has: a damaged checkpoint."""
    try:
        yield
    except (AttributeError, LookupError, TypeError) as error:
        raise UnusableModelError(
            f"the model cannot run, a layer of its checkpoint is damaged: {one_line(error)}"
        ) from error


class TorchBackend:
    """Ultralytics detector, copied, behind the interface of `drone_kd.backends.Backend`.

    ``imgsz``: default: the square it was trained at. ``batch``: frames per inference. Raises
    UnusableModelError if a layer is damaged, also at the first inference.
    """

    name = "torch"
    fallback = ""

    def __init__(
        self, model: nn.Module, imgsz: ImageSize | None = None, batch: int = 1, device: str = "cpu"
    ) -> None:
        self.device = device
        with _damage_named():
            self.graph = ExportGraph(model).to(device)
        self.spec = make_spec(model, imgsz or trained_imgsz(model), batch=batch, **_NO_FILE)

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Run uint8 (B, H, W, 3) BGR frames; return float32 (B, K, 6), see `ExportGraph`."""
        with torch.inference_mode(), _damage_named():
            return self.graph(torch.tensor(batch, device=self.device)).cpu().numpy()


class BoxBackend:
    """RT-DETR behind the interface of `drone_kd.backends.Backend`; each query is one row."""

    name = "torch"
    fallback = ""

    def __init__(self, model: nn.Module, device: str = "cpu") -> None:
        self.device = device
        self.model = model.to(device).eval()
        self.spec = make_spec(model, trained_imgsz(model), head="end2end", **_NO_FILE)

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Run uint8 (B, H, W, 3) BGR frames; return float32 (B, queries, 6), best first."""
        with torch.inference_mode():
            frames = torch.tensor(batch, device=self.device).permute(0, 3, 1, 2).flip(1) / 255
            boxes, logits = self.model(frames)[1][:2]  # one entry per decoder layer
            scores, class_ids = logits[-1].sigmoid().max(dim=-1)
            size = torch.tensor([*batch.shape[2:0:-1]] * 2, device=self.device)
            xyxy = box_convert(boxes[-1], "cxcywh", "xyxy").clamp(0, 1) * size
            rows = torch.cat([xyxy, scores[..., None], class_ids[..., None]], dim=-1)
            order = scores.argsort(dim=-1, descending=True, stable=True)
            return rows.gather(1, order[..., None].expand_as(rows)).cpu().numpy()


def trained_imgsz(model: nn.Module) -> int:
    """Return the square input size of training; 640, Ultralytics' default, if not recorded.

    Raises UnusableModelError for a size that no training has.
    """
    args = getattr(model, "args", None)
    size = args.get("imgsz") if isinstance(args, dict) else getattr(args, "imgsz", None)
    size = size[0] if isinstance(size, (list, tuple)) else size
    size = 640 if size is None else size
    if not isinstance(size, (int, float)) or not 32 <= size <= MAX_IMGSZ:
        got = one_line(repr(size), 60)
        raise UnusableModelError(
            f"expected a checkpoint trained at 32 to {MAX_IMGSZ} pixels, got {got}: give --imgsz"
        )
    return int(size)


def make_spec(model: nn.Module, imgsz: ImageSize, **fields: Any) -> ModelSpec:
    """Return the metadata of a detector; ``fields``: further fields of `ModelSpec`."""
    height, width = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
    if "head" not in fields:
        fields["head"] = "end2end" if is_end_to_end(model) else "dense"
    classes = class_names(model)
    return ModelSpec(classes=classes, input_width=width, input_height=height, **fields)
