"""Frames from a picture, a folder of pictures or a video file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from drone_kd.media.compressed_images import is_incomplete

PICTURE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm")

# FFmpeg, inside OpenCV, would print lines of its own about a damaged file.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


class SourceError(ValueError):
    """A picture or video cannot be used; the message is one line and names the file."""


def read_frames(
    source: str | Path, on_error: Callable[[SourceError], None]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, frame) from a picture, a folder of pictures (sorted by name) or a video.

    A name is the picture's path, or "path#n" for frame n of a video, counted from 0. A frame is
    uint8 (h, w, 3) BGR. A picture that cannot be read goes to `on_error`, and the next follows.

    Raises:
        SourceError: there is no such source, or nothing of it can ever be read.
    """
    source = Path(source)
    suffix = source.suffix.lower()
    if source.is_dir():
        pictures = sorted(p for p in source.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES)
        if not pictures:
            raise SourceError(f"{source}: expected pictures ({', '.join(PICTURE_SUFFIXES)}) in it")
        yield from _read_pictures(pictures, on_error)
    elif not source.exists():
        raise SourceError(f"{source}: no such picture, folder or video")
    elif suffix in PICTURE_SUFFIXES:
        yield from _read_pictures([source], on_error)
    elif suffix in VIDEO_SUFFIXES:
        yield from _read_video(source)
    else:
        known = ", ".join(PICTURE_SUFFIXES + VIDEO_SUFFIXES)
        raise SourceError(f"{source}: expected a folder or a file that ends in one of {known}")


def read_picture(path: str | Path) -> np.ndarray:
    """Read a picture as uint8 (h, w, 3) BGR, turned as its EXIF orientation says.

    Raises:
        SourceError: the file is missing, empty, incomplete or not a picture.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from None
    if is_incomplete(data):
        raise SourceError(f"{path}: the picture is incomplete (empty or cut off)")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # e.g. more pixels than OpenCV accepts
        image = None
    if image is None:
        raise SourceError(f"{path}: not a picture that OpenCV can read (damaged?)")
    return image


def _read_pictures(
    paths: list[Path], on_error: Callable[[SourceError], None]
) -> Iterator[tuple[str, np.ndarray]]:
    for path in paths:
        try:
            image = read_picture(path)
        except SourceError as error:
            on_error(error)
        else:
            yield str(path), image


def _read_video(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    capture = cv2.VideoCapture(str(path))
    try:
        number = 0
        while True:
            read, frame = capture.read()
            if not read:
                break
            yield f"{path}#{number}", frame
            number += 1
    finally:
        capture.release()
    if number == 0:
        raise SourceError(f"{path}: not a video that OpenCV can read (damaged?)")
