"""Preprocessing: from an image of any size to the network's input."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from drone_kd.core.arrays import Float32Array, UInt8Array
from drone_kd.core.model_spec import ModelSpec

PADDING_VALUE = 114


class Letterbox(NamedTuple):
    """Placement of an image on the canvas: network px = scale * image px + pad."""

    scale: float
    pad_x: int
    pad_y: int


def letterbox(image: UInt8Array, width: int, height: int) -> tuple[UInt8Array, Letterbox]:
    """Scale an image to fit, keep its aspect ratio, and centre it on a grey canvas.

    Identical, pixel for pixel, to Ultralytics' LetterBox (bilinear, no antialiasing, upscales
    too), so that the deployed model gets the same input as in training.

    Args:
        image: (h, w, 3), any colour order, rows may be strided.
        width, height: size of the canvas (height, width, 3) in pixels.
    """
    image_height, image_width = image.shape[:2]
    scale = min(height / image_height, width / image_width)
    # A very thin image still keeps one pixel.
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


def network_input(frames: UInt8Array, spec: ModelSpec) -> UInt8Array | Float32Array:
    """Convert letterboxed frames (batch, H, W, 3) in BGR to the graph's input.

    That is `frames` itself for a uint8 model; float32 (batch, 3, H, W) RGB in [0, 1] for a model
    that was exported for other programs.
    """
    if spec.dtype == "uint8":
        return frames
    planes = frames[..., ::-1].transpose(0, 3, 1, 2)
    scaled: Float32Array = np.multiply(planes, np.float32(1 / 255), dtype=np.float32, order="C")
    return scaled
