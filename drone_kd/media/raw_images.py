"""Uncompressed pictures as cameras send them: bytes in some encoding to BGR pixels.

The encodings are those of sensor_msgs/image_encodings.hpp, and nv12, which drivers use as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

# Of a thermal picture's values this many percent at both ends are black and white: a few
# dead pixels must not take the contrast of all others.
_THERMAL_CLIP_PERCENT = 1.0
# Thermal statistics look at every n-th pixel of every n-th row.
_THERMAL_STRIDE = 4


class RawError(ValueError):
    """A picture's bytes cannot be used; the message is one line."""


class RawImage(Protocol):
    """What a sensor_msgs/Image holds, whichever library has read it."""

    encoding: str
    width: int
    height: int
    step: int
    is_bigendian: int
    data: Any


class _Encoding(NamedTuple):
    """How the pixels lie in memory."""

    channels: int
    bytes_per_channel: int
    to_bgr: Callable[[np.ndarray], np.ndarray]
    # A packed or planar YUV has one colour for this many pixels in a row, or in both directions.
    even: tuple[int, int] = (1, 1)
    # Below this size OpenCV answers a Bayer pattern with black.
    smallest: int = 1
    # Rows of the data per row of pixels: 1.5 where a half-height plane of colours follows.
    rows_per_row: float = 1.0


def _cvt(code: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda pixels: cv2.cvtColor(pixels, code)


def _cvt_high_byte(code: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda pixels: cv2.cvtColor(_high_byte(pixels), code)


def _high_byte(pixels: np.ndarray) -> np.ndarray:
    return (pixels >> 8).astype(np.uint8)


def _thermal_to_bgr(pixels: np.ndarray) -> np.ndarray:
    """Stretch raw 16-bit values, of which a scene uses a narrow band, over black to white."""
    sample = pixels[::_THERMAL_STRIDE, ::_THERMAL_STRIDE]
    low, high = np.percentile(sample, (_THERMAL_CLIP_PERCENT, 100 - _THERMAL_CLIP_PERCENT))
    scale = 255.0 / max(high - low, 1.0)
    grey = cv2.convertScaleAbs(
        np.maximum(pixels, low).astype(np.float32), None, scale, -low * scale
    )
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)


def _same(pixels: np.ndarray) -> np.ndarray:
    return pixels


_GREY = cv2.COLOR_GRAY2BGR
# ROS names a pattern by its first two rows, OpenCV by the second row's middle.
_BAYER = {
    "rggb": cv2.COLOR_BayerBG2BGR,
    "bggr": cv2.COLOR_BayerRG2BGR,
    "gbrg": cv2.COLOR_BayerGR2BGR,
    "grbg": cv2.COLOR_BayerGB2BGR,
}
_UYVY = _Encoding(2, 1, _cvt(cv2.COLOR_YUV2BGR_UYVY), even=(2, 1))
_YUYV = _Encoding(2, 1, _cvt(cv2.COLOR_YUV2BGR_YUYV), even=(2, 1))

_ENCODINGS = {
    "bgr8": _Encoding(3, 1, _same),
    "rgb8": _Encoding(3, 1, _cvt(cv2.COLOR_RGB2BGR)),
    "bgra8": _Encoding(4, 1, _cvt(cv2.COLOR_BGRA2BGR)),
    "rgba8": _Encoding(4, 1, _cvt(cv2.COLOR_RGBA2BGR)),
    "mono8": _Encoding(1, 1, _cvt(_GREY)),
    "mono16": _Encoding(1, 2, _cvt_high_byte(_GREY)),
    "16UC1": _Encoding(1, 2, _thermal_to_bgr),
    **{f"bayer_{name}8": _Encoding(1, 1, _cvt(code), smallest=3) for name, code in _BAYER.items()},
    **{
        f"bayer_{name}16": _Encoding(1, 2, _cvt_high_byte(code), smallest=3)
        for name, code in _BAYER.items()
    },
    "nv12": _Encoding(1, 1, _cvt(cv2.COLOR_YUV2BGR_NV12), even=(2, 2), rows_per_row=1.5),
    "nv21": _Encoding(1, 1, _cvt(cv2.COLOR_YUV2BGR_NV21), even=(2, 2), rows_per_row=1.5),
    "uyvy": _UYVY,
    "yuv422": _UYVY,
    "yuyv": _YUYV,
    "yuv422_yuy2": _YUYV,
}


def is_8_bit(message: RawImage) -> bool:
    """Tell whether the pixels of a message that can be read have 8 bits per channel."""
    return _ENCODINGS[message.encoding].bytes_per_channel == 1


def raw_to_bgr(message: RawImage) -> np.ndarray:
    """Return an image's pixels as uint8 (height, width, 3) BGR.

    A bgr8 image is a view of the message's own memory, with its row step. Of 16 bits the high 8
    count, but in 16UC1 (thermal) the picture's own range is stretched over black to white.

    Raises:
        RawError: the encoding is unknown, the image is empty, or its data are too short.
    """
    encoding = _ENCODINGS.get(message.encoding)
    if encoding is None:
        raise RawError(
            f"expected an image encoded as {', '.join(_ENCODINGS)}, got {message.encoding!r}"
        )
    height, width, step = message.height, message.width, message.step
    if min(height, width) < encoding.smallest:
        raise RawError(
            f"expected an image of at least {encoding.smallest}x{encoding.smallest} pixels, "
            f"got {width}x{height}"
        )
    if width % encoding.even[0] or height % encoding.even[1]:
        raise RawError(f"expected an even size for {message.encoding}, got {width}x{height}")
    pixel_bytes = encoding.channels * encoding.bytes_per_channel
    if step < width * pixel_bytes:
        raise RawError(
            f"expected a row step of at least {width * pixel_bytes} bytes for {width} pixels of "
            f"{message.encoding}, got {step}"
        )
    rows = int(height * encoding.rows_per_row)
    if len(message.data) < rows * step:
        raise RawError(
            f"expected {rows * step} bytes for {rows} rows of {step}, got {len(message.data)}"
        )
    data = np.frombuffer(message.data, np.uint8, rows * step).reshape(rows, step)
    data = data[:, : width * pixel_bytes]
    if encoding.bytes_per_channel == 2:
        # A row step may be odd, so the rows are not always aligned: a view is still fine.
        data = data.view(">u2" if message.is_bigendian else "<u2")
    if encoding.channels > 1:
        data = data.reshape(rows, width, encoding.channels)
    try:
        return encoding.to_bgr(data)
    except cv2.error as error:
        raise RawError(
            f"{width}x{height} of {message.encoding}: OpenCV cannot convert it ({error.err})"
        ) from None
