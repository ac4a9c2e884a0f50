"""Fit a picture of any size into the network's input."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from drone_kd.core.model_spec import ModelSpec

PADDING_VALUE = 114


class Letterbox(NamedTuple):
    """How a picture was placed on the canvas: network px = scale * picture px + pad."""

    scale: float
    pad_x: int
    pad_y: int


def letterbox(image: np.ndarray, width: int, height: int) -> tuple[np.ndarray, Letterbox]:
    """Scale a picture to fit, keep its aspect ratio, and centre it on a grey canvas.

    Pixel for pixel what Ultralytics' LetterBox does in training (bilinear, no antialiasing,
    scaling up too), because a student must see in flight what it saw when it learnt.

    Args:
        image: uint8 (h, w, 3), any colour order, rows may be strided.
        width: canvas width in pixels.
        height: canvas height in pixels.

    Returns:
        The canvas, uint8 (height, width, 3), and the placement.
    """
    image_height, image_width = image.shape[:2]
    scale = min(height / image_height, width / image_width)
    # A very thin picture still keeps one pixel.
    new_width = max(round(image_width * scale), 1)
    new_height = max(round(image_height * scale), 1)
    # An odd remainder gives the extra row or column to the bottom or right.
    pad_x = round((width - new_width) / 2 - 0.1)
    pad_y = round((height - new_height) / 2 - 0.1)
    canvas = np.full((height, width, 3), PADDING_VALUE, np.uint8)
    window = canvas[pad_y : pad_y + new_height, pad_x : pad_x + new_width]
    if (new_width, new_height) == (image_width, image_height):
        window[:] = image
    else:
        cv2.resize(image, (new_width, new_height), dst=window, interpolation=cv2.INTER_LINEAR)
    return canvas, Letterbox(scale, pad_x, pad_y)


def network_input(frames: np.ndarray, spec: ModelSpec) -> np.ndarray:
    """Give a model what its graph takes: for ours the frames themselves.

    Args:
        frames: uint8 (batch, H, W, 3) BGR, of the network's size.
        spec: the model's description of itself.

    Returns:
        `frames`, or for a model that was exported for other programs float32 (batch, 3, H, W),
        RGB, 0 to 1.
    """
    if spec.dtype == "uint8":
        return frames
    planes = frames[..., ::-1].transpose(0, 3, 1, 2)
    return np.multiply(planes, np.float32(1 / 255), dtype=np.float32, order="C")
