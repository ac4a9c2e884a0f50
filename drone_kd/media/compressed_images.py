"""Compressed images: their size is read from the header, and limited, before they are decoded.

A file of some hundred bytes may declare an image of gigabytes.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterator

import cv2
import numpy as np

from drone_kd.core.arrays import UInt8Array

# Pixels of an image: fewer than this.
MAX_PIXELS = 64_000_000
# Above this size an image has at most so many pixels per stored byte: a uniform baseline JPEG has
# about 70, real images fewer than 20. Otherwise 100 bytes may have all pixels that are allowed.
ALWAYS_PIXELS, MAX_PIXELS_PER_BYTE = 16_000_000, 300
# Set in drone_kd/__init__.py, or by the user, maybe with a unit.
_OPENCV_LIMIT = os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"]
_OPENCV_MAX_PIXELS = int(_OPENCV_LIMIT) if _OPENCV_LIMIT.isdecimal() else 1 << 30
# Bytes at the start of a file that hold its size.
HEADER_BYTES = 4_000_000

_JPEG_START, _PNG_START = b"\xff\xd8", b"\x89PNG"
# Of a JPEG. Cameras write some dozen segments, thermal ones hundreds with their measurements; a
# file may consist of millions.
_MAX_SEGMENTS = 1000
# Bytes between two segments of the header: cameras write none.
_MAX_JUNK = 1000
# Bytes of the longest header: 600 segments of the largest size.
JPEG_HEADER_BYTES = 40_000_000
# Progressive encoders write about ten scans; each takes as long as an image of its own.
_MAX_SCANS = 32
# First byte after those of no segment: stuffing, fill bytes, TEM, RST0 to RST7 and SOI.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
# Start of frame; C4, C8 and CC are tables (ITU-T T.81, table B.1).
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Baseline and extended sequential: the only ones that may have a single scan.
_SEQUENTIAL = frozenset({0xC0, 0xC1, 0xC9})
# TIFF's tags of width and height of the image and its tiles, and how to read a value by its type:
# SHORT or LONG.
_TIFF_SIZE, _TIFF_BYTES = (256, 257, 322, 323), {3: 2, 4: 4}
# TIFF's tag of bits per sample, a list of SHORT, of which so many count.
_TIFF_BITS, _MAX_SAMPLES = 258, 8
# Bit of a WebP's flags.
_ANIMATED = 2
_MAX_TAGS = 1000
# Chunks of a PNG that its pixels need. Others may hold a thousand compressed texts; a short eXIf,
# the orientation, is kept.
_PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_MAX_EXIF = 64_000
# Chunks that are always allowed, and bytes of the file for each further one: encoders write 4 kB
# and more into a chunk.
_CHUNKS, _BYTES_PER_CHUNK = 1000, 4000

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
    check_size(data, max_pixels)
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
        EncodedError: the header declares `max_pixels` or more, or no size that can be read, or the
            image takes too many scans or chunks to decode.
    """
    check_size(data, max_pixels)
    if data.startswith(_PNG_START):
        data = _pixel_chunks(data)
    elif data.startswith(_JPEG_START) and _number_of_scans(data) > _MAX_SCANS:
        raise EncodedError(f"expected a JPEG of at most {_MAX_SCANS} scans, got more")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # e.g. more pixels than OpenCV accepts
        return None
    return None if image is None else np.asarray(image, np.uint8)


def encode(image: UInt8Array, suffix: str) -> bytes:
    """Return an image (h, w, 3) BGR in the format of a suffix such as ".jpg".

    EncodedError: the format cannot hold it, e.g. because of a limit of its sides.
    """
    try:
        done, data = cv2.imencode(suffix, image)
    except cv2.error as error:
        raise EncodedError(error.err) from None
    if not done:
        height, width = image.shape[:2]
        raise EncodedError(f"{suffix} holds no image of {width}x{height} pixels")
    return data.tobytes()


def check_size(
    data: bytes,
    max_pixels: int = MAX_PIXELS,
    read: Callable[[int, int], bytes] | None = None,
) -> None:
    """Raise EncodedError if the header declares `max_pixels` or more, or no readable size.

    An image of more than 16 megapixels has at most `MAX_PIXELS_PER_BYTE`.

    Args:
        data: of the image, at least its first `HEADER_BYTES`; of a JPEG that has no size in them,
            its first `JPEG_HEADER_BYTES`.
        max_pixels: an image has fewer; never more than OPENCV_IO_MAX_IMAGE_PIXELS. Half of it for
            progressive JPEG, 16 bits per sample and animations, which take twice the memory.
        read: returns the bytes at a position, (start, length), of a TIFF; default: from `data`.
    """
    reason = " (OPENCV_IO_MAX_IMAGE_PIXELS)" if max_pixels > _OPENCV_MAX_PIXELS else ""
    max_pixels = min(max_pixels, _OPENCV_MAX_PIXELS)
    read = read or (lambda start, length: data[start : start + length])
    size = image_size(data, read)
    if size is None:
        raise EncodedError(
            "expected a BMP, JPEG, PNG, TIFF or WebP, got no header that is readable"
        )
    pixels, cost = size[0] * size[1], _memory_factor(data, read)
    got = f"got {size[0]}x{size[1]} pixels"
    if pixels * cost >= max_pixels:
        kind = "" if cost == 1 else " for a progressive, deep or animated image"
        limit = max_pixels / cost / 1e6
        raise EncodedError(f"expected less than {limit:g} megapixels{reason}{kind}, {got}")
    if pixels > max(ALWAYS_PIXELS, MAX_PIXELS_PER_BYTE * len(data)):
        expected = f"at most {MAX_PIXELS_PER_BYTE} pixels per byte of a large image"
        raise EncodedError(f"expected {expected}, {got} in {len(data)} bytes")


def _memory_factor(data: bytes, read: Callable[[int, int], bytes]) -> int:
    """Return how many times the memory of plain pixels the decoder of an image needs.

    A progressive JPEG is held as coefficients of 16 bits, an animation with its canvas.
    """
    if data.startswith(_JPEG_START):
        return 2 if _has_many_scans(data) else 1
    if data.startswith(_PNG_START):
        return 2 if data[24:25] == b"\x10" else 1
    if data.startswith(b"RIFF"):
        return 2 if data[12:16] == b"VP8X" and data[20] & _ANIMATED else 1
    if data.startswith((b"II*\0", b"MM\0*")):
        return max(_tiff_bits(read) // 8, 1)
    return 1


def _has_many_scans(data: bytes) -> bool:
    """Return whether a JPEG is progressive, or its first scan has not all components."""
    components = 0
    for kind, position in _jpeg_segments(data):
        if kind in _START_OF_FRAME - _SEQUENTIAL:
            return True
        if kind in _SEQUENTIAL:
            components = _big(data[position + 7 : position + 8])
        elif kind == _START_OF_SCAN:
            return _big(data[position + 2 : position + 3]) != components
    return True  # as far as is known


def image_size(
    data: bytes, read: Callable[[int, int], bytes] | None = None
) -> tuple[int, int] | None:
    """Return width and height in pixels from the header; None if there is no size, or it is 0.

    `read`: see `check_size`. Of a TIFF, a side of its tiles counts if it is the larger.
    """
    size = None
    if data.startswith(_JPEG_START):
        size = jpeg_size(data)
    elif data.startswith(_PNG_START) and data[12:16] == b"IHDR":
        size = _big(data[16:20]), _big(data[20:24])
    elif data.startswith(b"BM"):
        size = _bmp_size(data)
    elif data.startswith((b"II*\0", b"MM\0*")):
        size = _tiff_size(read or (lambda start, length: data[start : start + length]))
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
        return data.rfind(b"IEND") < 0  # at the end, unless it is cut
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


def _jpeg_segments(data: bytes, all_scans: bool = False) -> Iterator[tuple[int, int]]:
    """Yield marker and position of its length for a JPEG's segments up to the first scan.

    As libjpeg does, this skips bytes between segments, and fill bytes before a marker.
    `all_scans`: up to the end of the image.
    """
    position = 2 if data.startswith(_JPEG_START) else len(data)
    junk = _MAX_JUNK
    for _ in range(_MAX_SEGMENTS):
        marker = _MARKER.search(data, position, position + junk)
        if marker is None:
            return
        position = marker.end()
        kind = data[position - 1]
        yield kind, position
        if kind == _END_OF_IMAGE or (kind == _START_OF_SCAN and not all_scans):
            return
        if kind == _START_OF_SCAN:
            junk = len(data)
        position += max(_big(data[position : position + 2]), 2)


def _number_of_scans(data: bytes) -> int:
    """Return how many scans a JPEG has; above `_MAX_SCANS` it is not exact."""
    components = scans = 0
    for kind, position in _jpeg_segments(data, all_scans=True):
        if kind in _SEQUENTIAL:
            components = _big(data[position + 7 : position + 8])
        elif kind == _START_OF_SCAN:
            scans += 1
            # The only scan holds all components: libjpeg reads no others.
            if scans > _MAX_SCANS or _big(data[position + 2 : position + 3]) == components:
                break
    return scans


def _pixel_chunks(data: bytes) -> bytes:
    """Return a PNG without what its pixels do not need.

    EncodedError: it has too many chunks, or one that is longer than the file, for which OpenCV
    would allocate as much memory as it declares, up to 4 GB.
    """
    kept, dropped, position, kind = [data[:8]], 0, 8, b""
    limit = _CHUNKS + len(data) // _BYTES_PER_CHUNK
    while kind != b"IEND":
        header = data[position : position + 8]
        if len(header) < 8:
            raise EncodedError("the PNG is cut off")
        length, kind = struct.unpack(">I4s", header)
        end = position + 12 + length
        if end > len(data):
            raise EncodedError("expected a PNG with chunks inside the file, got a longer one")
        if kind in _PIXEL_CHUNKS or (kind == b"eXIf" and length <= _MAX_EXIF):
            kept.append(data[position:end])
        else:
            dropped += 1
        if len(kept) + dropped > limit:
            raise EncodedError(f"expected a PNG of at most {limit} chunks, got more")
        position = end
    return b"".join(kept) if dropped else data


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


def _tiff_size(read: Callable[[int, int], bytes]) -> tuple[int, int] | None:
    """Return the size of the first image of a TIFF, which is the one that OpenCV decodes."""
    number, tags = _tiff_tags(read)
    size = dict.fromkeys(_TIFF_SIZE, 0)
    for tag, kind, _, value in tags:
        if tag in _TIFF_SIZE:
            if kind not in _TIFF_BYTES:
                return None
            # A tag that is there twice counts as the larger.
            size[tag] = max(size[tag], number(value[: _TIFF_BYTES[kind]]))
    width, height, tile_width, tile_height = size.values()
    if not width or not height:
        return None
    return max(width, tile_width), max(height, tile_height)


def _tiff_bits(read: Callable[[int, int], bytes]) -> int:
    """Return the bits per sample of the first image of a TIFF; 1 if it does not say."""
    number, tags = _tiff_tags(read)
    bits = 1
    for tag, _, count, value in tags:
        if tag == _TIFF_BITS:
            # Two of them fit into the tag.
            samples = value if count <= 2 else read(number(value), 2 * min(count, _MAX_SAMPLES))
            bits = max([bits, *(number(samples[i : i + 2]) for i in range(0, len(samples), 2))])
    return bits


def _tiff_tags(
    read: Callable[[int, int], bytes],
) -> tuple[Callable[[bytes], int], list[tuple[int, int, int, bytes]]]:
    """Return how numbers are read, and tag, type, count and 4 bytes of value of a TIFF's tags."""
    start = read(0, 8)
    number = _little if start.startswith(b"II") else _big
    at = number(start[4:8])
    count = number(read(at, 2))
    if count > _MAX_TAGS:
        return number, []
    entries = read(at + 2, 12 * count)
    return number, [
        (
            number(entry[:2]),
            number(entry[2:4]),
            number(entry[4:8]),
            entry[8:12],
        )
        for entry in (entries[i : i + 12] for i in range(0, len(entries), 12))
    ]


def _big(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")
