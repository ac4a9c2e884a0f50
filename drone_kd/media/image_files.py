"""Frames of an image file, a folder of images or a video file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from drone_kd.media.compressed_images import (
    HEADER_BYTES,
    JPEG_HEADER_BYTES,
    MAX_PIXELS,
    EncodedError,
    check_size,
    decode,
    image_size,
    is_incomplete,
)
from drone_kd.media.errors import SourceError
from drone_kd.media.videos import checked_frame, open_video
from drone_kd.parsing import ParseError, open_regular
from drone_kd.text import one_line

__all__ = ["SourceError", "open_video", "read_frames", "read_image", "read_video"]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# Of an image file: more than 16-bit pixels without compression take.
MAX_BYTES = 400_000_000
# More than a pixel takes in any format but TIFF.
_PIXEL_BYTES = 16
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm")


def read_frames(
    source: str | Path,
    on_error: Callable[[SourceError], None],
    max_pixels: int = MAX_PIXELS,
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield (name, frame) of an image, a folder of images (sorted by name) or a video.

    A name is the image's path, or "path#n" for frame n of a video, counted from 0. A frame is
    uint8 (h, w, 3) BGR with fewer than `max_pixels`. An image that cannot be read goes to
    `on_error`, and the next follows.
    SourceError: there is no such source, or nothing in it can be read.
    """
    source = Path(source)
    suffix = source.suffix.lower()
    images = [source]
    if source.is_dir():
        images = sorted(p for p in source.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not images:
            raise SourceError(
                f"{one_line(source)}: expected images ({', '.join(IMAGE_SUFFIXES)}) in it"
            )
    elif not source.exists():
        raise SourceError(f"{one_line(source)}: no such image, folder or video")
    elif suffix in VIDEO_SUFFIXES:
        capture = open_video(source, max_pixels)
        yield from read_video(capture, one_line(source), max_pixels)
        return
    elif suffix not in IMAGE_SUFFIXES:
        known = ", ".join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)
        expected = f"a folder or a file that ends in one of {known}"
        raise SourceError(f"{one_line(source)}: expected {expected}")
    for path in images:
        try:
            image = read_image(path, max_pixels)
        except SourceError as error:
            on_error(error)
        else:
            yield str(path), image


def read_image(
    path: str | Path, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES
) -> NDArray[np.uint8]:
    """Read an image as (h, w, 3) BGR, rotated to its EXIF orientation.

    The sizes in pixels and bytes are checked before the file is read.

    SourceError: the file is missing, empty, incomplete, too large or not an image.
    """
    name = one_line(path)
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > max_bytes:
                raise SourceError(f"{name}: expected at most {max_bytes / 1e6:g} MB, got more")
            head = file.read(HEADER_BYTES)
            if not head:
                raise SourceError(f"{name}: the image is incomplete (empty or cut off)")
            if head.startswith(b"\xff\xd8") and image_size(head) is None:
                file.seek(0)
                head = file.read(JPEG_HEADER_BYTES)
            check_size(head, max_pixels, lambda start, n: os.pread(file.fileno(), n, start))
            file.seek(0)
            data = file.read(_bytes_needed(head, max_bytes))
        if is_incomplete(data):
            raise SourceError(f"{name}: the image is incomplete (empty or cut off)")
        image = decode(data, cv2.IMREAD_COLOR, max_pixels)
    except OSError as error:
        raise SourceError(f"{name}: {error.strerror}") from None
    except EncodedError as error:
        raise SourceError(f"{name}: {error}") from None
    except ParseError as error:
        raise SourceError(str(error)) from None
    if image is None:
        raise SourceError(f"{name}: not an image that OpenCV can read (damaged?)")
    return image


def _bytes_needed(head: bytes, max_bytes: int) -> int:
    """Return how many bytes of an image are read: others, e.g. a video behind it, are left.

    The pixels of a TIFF may be anywhere in the file.
    """
    size = image_size(head)
    if size is None or head.startswith((b"II", b"MM")):
        return max_bytes
    return min(JPEG_HEADER_BYTES + _PIXEL_BYTES * size[0] * size[1], max_bytes)


def read_video(
    capture: cv2.VideoCapture, name: str, max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield ("name#n", frame) for every frame, and release the video; SourceError: it has none."""
    number = 0
    try:
        while (frame := capture.read()[1]) is not None:
            # The size may change within a stream.
            yield f"{name}#{number}", checked_frame(frame, name, max_pixels)
            number += 1
    finally:
        capture.release()
    if number == 0:
        raise SourceError(f"{name}: not a video that OpenCV can read (damaged?)")
