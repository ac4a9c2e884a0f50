"""Compressed images: JPEG and PNG bytes."""

from __future__ import annotations

import cv2
import numpy as np

from drone_kd.core.arrays import UInt8Array

_JPEG_START, _PNG_START = b"\xff\xd8", b"\x89PNG"

# Reduction to OpenCV's flag, with which the JPEG decoder skips the work for the dropped pixels.
_READ_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


class EncodedError(ValueError):
    """Bytes that are no readable image; the message is one line."""


def decode_reduced(data: bytes, width: int, height: int) -> tuple[UInt8Array, int, int, int]:
    """Decode a JPEG or PNG; a JPEG only as large as needed to fill a canvas of width x height.

    The canvas is what the image is scaled down to; 0 x 0: decode in full. The orientation in the
    EXIF header is ignored: boxes are in pixels of the camera's sensor.

    Returns:
        (h, w, 3) BGR, the reduction (1, 2, 4 or 8), and the original's width and height in pixels.

    Raises:
        EncodedError: the bytes are neither JPEG nor PNG, cut off, or damaged.
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
    image = decode(data, _READ_FLAGS[reduction] | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise EncodedError("expected an image that OpenCV can read, got damaged data")
    if size is None or reduction == 1:
        size = image.shape[1], image.shape[0]
    return image, reduction, *size


def decode(data: bytes, flags: int) -> UInt8Array | None:
    """Return an image, (h, w, 3) BGR; None where OpenCV, with its flags, cannot read it."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # e.g. more pixels than OpenCV accepts
        return None
    return None if image is None else np.asarray(image, np.uint8)


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return a JPEG's width and height in pixels; None if its header has none (a PNG)."""
    if not data.startswith(_JPEG_START):
        return None
    position = 2
    while data[position : position + 1] == b"\xff":
        kind = data[position + 1 : position + 2]
        # Start of frame; C4, C8 and CC are tables (ITU-T T.81, table B.1).
        if b"\xc0" <= kind <= b"\xcf" and kind not in (b"\xc4", b"\xc8", b"\xcc"):
            height = int.from_bytes(data[position + 5 : position + 7], "big")
            width = int.from_bytes(data[position + 7 : position + 9], "big")
            return (width, height) if width and height else None
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
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
    while (
        data[position : position + 1] == b"\xff" and data[position + 1 : position + 2] != b"\xda"
    ):
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return b"\xff\xd9" not in data[position:]
