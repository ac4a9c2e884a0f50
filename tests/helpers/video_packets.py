"""Packets of H.264 and H.265, as an encoder sends them: made by PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av", reason="needs PyAV: pip install -r requirements/video.txt")

# Encoder of a codec, and how it is told to use no B frames, or two.
_ENCODERS = {
    "h264": ("libx264", "x264-params", "bframes={}:b-adapt=0"),
    "hevc": ("libx265", "x265-params", "log-level=none:bframes={}:b-adapt=0"),
}


def encode(
    codec: str,
    images: Sequence[np.ndarray],
    keys: int = 10,
    b_frames: int = 0,
    pixels: str = "yuv420p",
) -> list[bytes]:
    """Return the packets of images, uint8 (h, w, 3) BGR.

    Args:
        codec: h264 or hevc.
        images: the frames.
        keys: every so many frames a key frame.
        b_frames: between two others.
        pixels: FFmpeg's name of their format.
    """
    name, option, text = _ENCODERS[codec]
    context = av.CodecContext.create(name, "w")
    context.height, context.width = images[0].shape[:2]
    context.pix_fmt, context.gop_size = pixels, keys
    context.time_base, context.framerate = Fraction(1, 30), Fraction(30)
    context.options = {"preset": "ultrafast", option: text.format(b_frames)}
    if not b_frames:
        context.options |= {"tune": "zerolatency"}
    packets = []
    for number, image in enumerate(images):
        frame = av.VideoFrame.from_ndarray(image, "bgr24").reformat(format=pixels)
        frame.pts = number
        packets += [bytes(packet) for packet in context.encode(frame)]
    return packets + [bytes(packet) for packet in context.encode(None)]


def moving(count: int, size: tuple[int, int] = (160, 96)) -> list[np.ndarray]:
    """Return images in which a bright square moves, so that each differs from the last."""
    width, height = size
    images = []
    for number in range(count):
        image = np.full((height, width, 3), 40, np.uint8)
        left = 4 + 4 * number % (width - 40)
        image[16:48, left : left + 32] = 220
        images.append(image)
    return images
