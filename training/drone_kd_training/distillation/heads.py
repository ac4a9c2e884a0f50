# SPDX-License-Identifier: AGPL-3.0-or-later
"""Raw predictions of Detect heads: reading, splitting by level and decoding them."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_convert
from ultralytics.nn.modules.head import Detect
from ultralytics.utils.tal import dist2bbox, make_anchors

from drone_kd_training.distillation.losses import BACKGROUND
from drone_kd_training.teachers.soft_labels import Boxes


def raw_predictions(preds) -> dict:
    """Return the {boxes (B, 4R, N), scores (B, C, N), feats} of a Detect head in any mode.

    A head with two branches (YOLO26) is compared on the one-to-many branch: one-to-one sees
    detached features, so its gradient does not reach the backbone.
    """
    preds = preds[1] if isinstance(preds, tuple) else preds
    return preds.get("one2many", preds)


def in_float32(preds):
    """Return a head's output with every tensor in float32.

    This includes the features: Ultralytics gives the anchors their dtype, and bfloat16 rounds the
    anchors beyond the 128th cell.
    """
    if isinstance(preds, dict):
        return {name: in_float32(value) for name, value in preds.items()}
    if isinstance(preds, (list, tuple)):
        return type(preds)(map(in_float32, preds))
    return preds.float()


def take_levels(raw: dict, key: str, levels: list[int]) -> Tensor:
    """Return the anchors of some levels of raw predictions, as (B, N, channels)."""
    counts = [f.shape[-2] * f.shape[-1] for f in raw["feats"]]
    parts = raw[key].split(counts, dim=-1)
    return torch.cat([parts[i] for i in levels], dim=-1).transpose(1, 2)


def all_levels(raw: dict, key: str) -> Tensor:
    """Return the anchors of every level of raw predictions, as (B, N, channels)."""
    return raw[key].transpose(1, 2)


def decode_boxes(raw: Tensor, bins: int, grids: list[Tensor], strides: Tensor) -> Tensor:
    """Decode raw boxes (B, N, 4 * bins) on ``grids`` to (B, N, 4), xyxy in pixels."""
    anchors, steps = make_anchors(grids, strides, 0.5)
    if bins > 1:
        values = torch.arange(bins, device=raw.device, dtype=raw.dtype)
        raw = raw.unflatten(-1, (4, bins)).softmax(-1) @ values
    return dist2bbox(raw, anchors, xywh=False) * steps


def decode_all_boxes(raw: dict, head: Detect) -> Tensor:
    """Decode the boxes of every level to (B, N, 4), xyxy in pixels of the input."""
    return decode_boxes(all_levels(raw, "boxes"), head.reg_max, raw["feats"], head.stride)


def input_size(raw: dict, head: Detect) -> float:
    """Return the width of the square input in pixels."""
    return float(raw["feats"][0].shape[-1] * head.stride[0])


def anchor_centers(grids: list[Tensor], strides: Tensor) -> Tensor:
    """Return the anchor centers (N, 2) in pixels."""
    anchors, steps = make_anchors(grids, strides, 0.5)
    return anchors * steps


def confident_boxes(raw: dict, head: Detect, size: float) -> Boxes:
    """Return the raw predictions with a score ≥ ``BACKGROUND`` as boxes, before NMS.

    ``size`` is the width of the square input of the head in pixels.
    """
    xyxy = decode_all_boxes(raw, head)
    scores = all_levels(raw, "scores").sigmoid()
    image, anchor = (scores.amax(-1) >= BACKGROUND).nonzero(as_tuple=True)
    cxcywh = box_convert(xyxy[image, anchor] / size, "xyxy", "cxcywh")
    return Boxes(image, cxcywh, scores[image, anchor])
