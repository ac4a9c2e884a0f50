"""Compressed images: their size is read from the header, and limited, before they are decoded.

A file of some hundred bytes may declare an image of gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from drone_kd.core.arrays import UInt8Array

# Pixels of an image: fewer than this.
MAX_PIXELS = 64_000_000

_JPEG_START, _PNG_START = b"\xff\xd8", b"\x89PNG"
# Of a JPEG's header. Cameras write some dozen; a file may consist of millions.
_MAX_SEGMENTS = 1000
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
# Start of frame; C4, C8 and CC are tables (ITU-T T.81, table B.1).
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Markers without a length: TEM, RST0 to RST7 and SOI.
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
# TIFF's tags of width and height, and how to read a value by its type: SHORT or LONG.
_TIFF_SIZE, _TIFF_BYTES = (256, 257), {3: 2, 4: 4}

# Reduction to OpenCV's flag, with which the JPEG decoder skips the work for the dropped pixels.
_READ_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


class EncodedError(ValueError):
    """Bytes that are no readable image; the message is one line."""


def decode_reduced(
    data: bytes, width: int, height: int, max_pixels: int = MAX_PIXELS
) -> tuple[UInt8Array, int, int, int]:
    """Decode a JPEG or PNG; a JPEG only as large as needed to fill a canvas of width x height.

    The canvas is what the image is scaled down to; 0 x 0: decode in full. The orientation in the
    EXIF header is ignored: boxes are in pixels of the camera's sensor.

    Returns:
        (h, w, 3) BGR, the reduction (1, 2, 4 or 8), and the original's width and height in pixels.

    Raises:
        EncodedError: the bytes are neither JPEG nor PNG, cut off, or damaged, or the image has
            `max_pixels` or more.
    """
    if not data.startswith((_JPEG_START, _PNG_START)):
        raise EncodedError(f"expected a JPEG or PNG, got bytes that start with {data[:4]!r}")
    if is_incomplete(data):
        raise EncodedError("the JPEG or PNG is cut off")
    reduction = 1
    size = jpeg_size(data) if width and height else None
    if size is not None:
        scale = max(size[0] / width, size[1] / height)
        reduction = max(step for step in _READ_FLAGS if step <= max(scale, 1))
    flags = _READ_FLAGS[reduction] | cv2.IMREAD_IGNORE_ORIENTATION
    image = decode(data, flags, max_pixels)
    if image is None:
        raise EncodedError("expected an image that OpenCV can read, got damaged data")
    if size is None or reduction == 1:
        size = image.shape[1], image.shape[0]
    return image, reduction, *size


def decode(data: bytes, flags: int, max_pixels: int = MAX_PIXELS) -> UInt8Array | None:
    """Return an image, (h, w, 3) BGR; None where OpenCV, with its flags, cannot read it.

    Raises:
        EncodedError: the header declares `max_pixels` or more, or no size that can be read.
    """
    size = image_size(data)
    if size is None:
        raise EncodedError(
            "expected a BMP, JPEG, PNG, TIFF or WebP, got no header that is readable"
        )
    if size[0] * size[1] >= max_pixels:
        raise EncodedError(
            f"expected less than {max_pixels / 1e6:g} megapixels, got {size[0]}x{size[1]} pixels"
        )
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # e.g. more pixels than OpenCV accepts
        return None
    return None if image is None else np.asarray(image, np.uint8)


def image_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height in pixels from the header; None if there is no size, or it is 0."""
    size = None
    if data.startswith(_JPEG_START):
        size = jpeg_size(data)
    elif data.startswith(_PNG_START) and data[12:16] == b"IHDR":
        size = _big(data[16:20]), _big(data[20:24])
    elif data.startswith(b"BM"):
        size = _bmp_size(data)
    elif data.startswith((b"II*\0", b"MM\0*")):
        size = _tiff_size(data)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        size = _webp_size(data)
    return size if size is not None and size[0] > 0 and size[1] > 0 else None


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return a JPEG's width and height in pixels; None if its header has none (a PNG)."""
    for kind, position in _jpeg_segments(data):
        if kind in _START_OF_FRAME:
            width, height = (
                _big(data[position + 5 : position + 7]),
                _big(data[position + 3 : position + 5]),
            )
            return (width, height) if width and height else None
    return None


def is_incomplete(data: bytes) -> bool:
    """Return whether a file is empty, or a JPEG or PNG that is cut off.

    OpenCV 4.5 decodes a cut JPEG without an error and fills it up with grey, so a detector would
    report nothing there.
    """
    if data.startswith(_PNG_START):
        return b"IEND" not in data
    if not data.startswith(_JPEG_START):
        return not data
    # Skip the header's segments, which may contain a whole thumbnail, up to the first scan (FFDA).
    # After that, FFD9 can only be the end of the image.
    position = 2
    for kind, start in _jpeg_segments(data):
        position = start
        if kind == _START_OF_SCAN:
            break
    return data.find(b"\xff\xd9", position) < 0


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield marker and position of its length for a JPEG's segments up to the first scan.

    As libjpeg does, this skips bytes between segments, and fill bytes before a marker.
    """
    position = 2 if data.startswith(_JPEG_START) else len(data)
    for _ in range(_MAX_SEGMENTS):
        position = data.find(b"\xff", position)
        if position < 0:
            return
        while data[position : position + 1] == b"\xff":
            position += 1
        if position >= len(data):
            return
        kind = data[position]
        position += 1
        if kind == 0 or kind in _BARE:
            continue
        yield kind, position
        if kind in (_START_OF_SCAN, _END_OF_IMAGE):
            return
        position += max(_big(data[position : position + 2]), 2)


def _bmp_size(data: bytes) -> tuple[int, int]:
    if _little(data[14:18]) == 12:  # OS/2
        return _little(data[18:20]), _little(data[20:22])
    width, height = (
        int.from_bytes(data[start : start + 4], "little", signed=True) for start in (18, 22)
    )
    return abs(width), abs(height)  # a negative height: rows from top to bottom


def _webp_size(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        return _little(data[24:27]) + 1, _little(data[27:30]) + 1
    if kind == b"VP8 ":
        return _little(data[26:28]) & 0x3FFF, _little(data[28:30]) & 0x3FFF
    if kind == b"VP8L":
        bits = _little(data[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None


def _tiff_size(data: bytes) -> tuple[int, int] | None:
    """Return the size of the first image of a TIFF, which is the one that OpenCV decodes."""
    read = _little if data.startswith(b"II") else _big
    start = read(data[4:8])
    size = dict.fromkeys(_TIFF_SIZE, 0)
    for number in range(read(data[start : start + 2])):
        at = start + 2 + 12 * number
        tag, kind = read(data[at : at + 2]), read(data[at + 2 : at + 4])
        if tag in _TIFF_SIZE:
            if kind not in _TIFF_BYTES:
                return None
            # A tag that is there twice counts as the larger.
            size[tag] = max(size[tag], read(data[at + 8 : at + 8 + _TIFF_BYTES[kind]]))
    return size[_TIFF_SIZE[0]], size[_TIFF_SIZE[1]]


def _big(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")
