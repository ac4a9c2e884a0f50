"""Raw images: uncompressed bytes in a camera's encoding to BGR pixels.

The encodings are those of sensor_msgs/image_encodings.hpp, plus nv12, which drivers use too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from drone_kd.core.arrays import UInt8Array
from drone_kd.text import one_line

# Characters of an unknown encoding in a message.
_MAX_NAME = 50
# Percent of a thermal image's values that become black and white, at both ends: a few dead pixels
# must not take the contrast from all others.
_THERMAL_CLIP_PERCENT = 1.0
# Thermal statistics sample every n-th pixel of every n-th row.
_THERMAL_STRIDE = 4


_Pixels: TypeAlias = "NDArray[np.uint8] | NDArray[np.uint16]"
_Conversion: TypeAlias = Callable[[_Pixels], UInt8Array]


class RawError(ValueError):
    """Unusable image data; the message is one line."""


class RawImage(Protocol):
    """sensor_msgs/Image, from any library that reads it."""

    encoding: str
    width: int
    height: int
    step: int
    is_bigendian: int
    data: Any  # supports the buffer protocol, which Python 3.10 has no type for


class _Encoding(NamedTuple):
    """Memory layout of the pixels and their conversion."""

    channels: int
    bytes_per_channel: int
    to_bgr: _Conversion
    even: tuple[int, int] = (1, 1)  # YUV has one colour for this many pixels in x and y
    smallest: int = 1  # below this size OpenCV converts a Bayer pattern to black
    rows_per_row: float = 1.0  # of data; 1.5 if a colour plane of half the height follows


def _cvt(code: int) -> _Conversion:
    return lambda pixels: np.asarray(cv2.cvtColor(pixels, code), np.uint8)


def _cvt_high_byte(code: int) -> _Conversion:
    return lambda pixels: np.asarray(cv2.cvtColor((pixels >> 8).astype(np.uint8), code), np.uint8)


def _thermal_to_bgr(pixels: _Pixels) -> UInt8Array:
    """Stretch the narrow band of 16-bit values that a scene uses over black to white."""
    sample = pixels[::_THERMAL_STRIDE, ::_THERMAL_STRIDE]
    low, high = np.percentile(sample, (_THERMAL_CLIP_PERCENT, 100 - _THERMAL_CLIP_PERCENT))
    scale = 255.0 / max(high - low, 1.0)
    clipped = np.maximum(pixels, low).astype(np.float32)
    grey = cv2.convertScaleAbs(clipped, None, scale, -low * scale)
    return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), np.uint8)


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
    "bgr8": _Encoding(3, 1, lambda pixels: np.asarray(pixels, np.uint8)),
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
    """Return whether the pixels of a readable message have 8 bits per channel."""
    return _ENCODINGS[message.encoding].bytes_per_channel == 1


def raw_to_bgr(message: RawImage) -> UInt8Array:
    """Return an image's pixels as uint8 (height, width, 3) BGR.

    A bgr8 image is a view of the message's memory, with its row step. 16-bit encodings keep the
    high 8 bits, except 16UC1 (thermal): the range of the image is stretched over black to white.
    RawError: the encoding is unknown, the image is empty, or its data are too short.
    """
    encoding = _ENCODINGS.get(message.encoding)
    if encoding is None:
        known = ", ".join(_ENCODINGS)
        got = one_line(message.encoding, _MAX_NAME)
        raise RawError(f"expected an image encoded as {known}, got {got!r}")
    height, width, step = message.height, message.width, message.step
    if min(height, width) < encoding.smallest:
        smallest = f"{encoding.smallest}x{encoding.smallest} pixels"
        raise RawError(f"expected an image of at least {smallest}, got {width}x{height}")
    if width % encoding.even[0] or height % encoding.even[1]:
        raise RawError(f"expected an even size for {message.encoding}, got {width}x{height}")
    pixel_bytes = encoding.channels * encoding.bytes_per_channel
    if step < width * pixel_bytes:
        raise RawError(
            f"expected a row step of at least {width * pixel_bytes} bytes for {width} pixels of "
            f"{message.encoding}, got {step}"
        )
    rows = int(height * encoding.rows_per_row)
    if (size := len(message.data)) < rows * step:
        raise RawError(f"expected {rows * step} bytes for {rows} rows of {step}, got {size}")
    data = np.frombuffer(message.data, np.uint8, rows * step).reshape(rows, step)
    pixels: _Pixels = data[:, : width * pixel_bytes]
    if encoding.bytes_per_channel == 2:
        # A row step may be odd, so the rows are not always aligned: a view is still fine.
        pixels = pixels.view(">u2" if message.is_bigendian else "<u2")
    if encoding.channels > 1:
        pixels = pixels.reshape(rows, width, encoding.channels)
    try:
        return encoding.to_bgr(pixels)
    except cv2.error as error:
        problem = f"OpenCV cannot convert it ({error.err})"
        raise RawError(f"{width}x{height} of {message.encoding}: {problem}") from None
