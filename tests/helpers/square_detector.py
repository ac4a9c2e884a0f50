"""Detector with weights set by hand: finds bright squares and dark bars without any training.

Its mAP is far from zero and practically the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
import yaml
from torch import nn
from ultralytics.nn.tasks import DetectionModel

from tiny_training import NAMES, SIZE

STRIDE = 4
CHANNELS = 16
# Brightness of the features; large enough that SiLU is close to the identity.
GAIN = 10.0
# Scores rise with the local brightness (car) or darkness (person) above these shares.
THRESHOLDS = (0.56, 0.60)
SLOPE = 2.0
ARCHITECTURE = {
    "nc": len(NAMES),
    "backbone": [[-1, 1, "Conv", [CHANNELS, 3, 2]], [-1, 1, "Conv", [CHANNELS, 3, 2]]],
    "head": [[[1], 1, "Detect", ["nc"]]],
}


def save_square_detector(path: Path, box_wh: tuple[float, float] = (11.0, 15.0)) -> Path:
    """Write a checkpoint whose boxes all measure ``box_wh`` pixels, centred on a 4-pixel grid.

    Args:
        path: the .pt to write.
        box_wh: width and height of every box, 8 to 120 pixels.

    Returns:
        ``path``.
    """
    model = DetectionModel(ARCHITECTURE, verbose=False)
    model.names = dict(enumerate(NAMES))
    layers: Any = model.model
    head = layers[-1]
    with torch.no_grad():
        _set_conv(layers[0], [[GAIN / 27] * 3, [-GAIN / 27] * 3], bias=[0.0, GAIN])
        for conv in (layers[1], *head.cv3[0][:2]):
            _set_conv(conv, [[1 / 9, 0], [0, 1 / 9]])
        for conv in head.cv2[0][:2]:
            _set_conv(conv, [[1 / 9]])
        logits = head.cv3[0][-1]
        logits.weight.zero_()
        for class_id, threshold in enumerate(THRESHOLDS):
            logits.weight[class_id, class_id] = SLOPE
            logits.bias[class_id] = -SLOPE * GAIN * threshold
        distances = head.cv2[0][-1]
        distances.weight.zero_()
        width, height = (side / 2 / STRIDE for side in box_wh)
        distances.bias.copy_(torch.cat([_dfl(d, head.reg_max) for d in (width, height) * 2]))
    cast(Any, model).args = {"imgsz": SIZE}
    torch.save({"model": model.eval(), "train_args": {"imgsz": SIZE}}, path)
    return path


def draw_squares(root: Path, side: int, train: int = 6, val: int = 60, prefix: str = "") -> Path:
    """Draw one bright square (car) per image, centred on the detector's grid.

    Args:
        root: folder of the data set, in Ultralytics' layout.
        side: side of every square, an even number of pixels.
        train, val: images per split.
        prefix: start of the images' names.

    Returns:
        The data.yaml.
    """
    rng = np.random.default_rng(side)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(90, 130, (SIZE, SIZE, 3), dtype=np.uint8)
            x, y = STRIDE * rng.integers(4, SIZE // STRIDE - 4, 2) + STRIDE // 2
            image[y - side // 2 : y + side // 2, x - side // 2 : x + side // 2] = 240
            name = f"{prefix}{split}-{i:03d}"
            cv2.imwrite(str(root / "images" / split / f"{name}.png"), image)
            row = f"0 {x / SIZE} {y / SIZE} {side / SIZE} {side / SIZE}\n"
            (root / "labels" / split / f"{name}.txt").write_text(row)
    content = {"train": "images/train", "val": "images/val", "names": dict(enumerate(NAMES))}
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    return root / "data.yaml"


def _set_conv(conv: Any, weights: list[list[float]], bias: Sequence[float] = (0.0,)) -> None:
    """Give the first channels a uniform kernel per input channel; switch the others off."""
    conv.conv.weight.zero_()
    for out, row in enumerate(weights):
        for channel, value in enumerate(row):
            conv.conv.weight[out, channel] = value
    nn.init.zeros_(conv.bn.bias)
    conv.bn.bias[: len(bias)] = torch.tensor(bias)


def _dfl(distance: float, bins: int) -> torch.Tensor:
    """Return logits whose softmax has its mean at ``distance``, between two neighbouring bins."""
    logits = torch.full((bins,), -20.0)
    low = math.floor(distance)
    share = min(max(distance - low, 1e-4), 1 - 1e-4)
    logits[low], logits[low + 1] = math.log(1 - share), math.log(share)
    return logits
