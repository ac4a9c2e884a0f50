"""Newest frames of a camera or a network stream; frames not taken in time are skipped."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from drone_kd.media.errors import SourceError
from drone_kd.media.image_files import VIDEO_SUFFIXES, read_video
from drone_kd.media.videos import (
    checked_frame,
    open_camera,
    open_pipeline,
    open_stream,
    open_video,
)
from drone_kd.text import one_line

_TIMEOUT_MS = 10_000
_JOIN_S = 1.0
# Rates of a file that are believed, and that of another one.
_MIN_HZ, _MAX_HZ, _DEFAULT_HZ = 0.1, 1000.0, 30.0
_URL = re.compile(r"(rtsps?|rtmps?|https?|udp|tcp|srt)://", re.IGNORECASE)


class StreamError(ConnectionError):
    """A live stream ended or stalled; the message is one line and names the stream."""


def is_live(source: str) -> bool:
    """Return whether `source` is a URL, a camera's number or a /dev/video device.

    A number is the camera only where no file or folder has that name.
    """
    is_camera_number = source.isdecimal() and not Path(source).exists()
    return bool(_URL.match(source)) or source.startswith("/dev/video") or is_camera_number


def read_live(source: str) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield (name, frame) of a live source: always the newest frame, each at most once.

    The name is "source#n" for frame n of the stream, counted from 0, without a password. A frame
    is uint8 (h, w, 3) BGR. A URL whose path ends like a video file is not live: all its frames
    are read.

    Raises:
        SourceError: the source cannot be opened.
        StreamError: the stream ended, or sent nothing for 10 s.
    """
    name = public_name(source)
    capture = _open(source, name)
    if _URL.match(source) and Path(source.partition("?")[0]).suffix.lower() in VIDEO_SUFFIXES:
        yield from read_video(capture, name)
        return
    newest = _Newest(capture)
    try:
        number = -1
        while (taken := newest.take()) is not None:
            number, frame = taken
            yield f"{name}#{number}", checked_frame(frame, name)
    finally:
        newest.close()
    if number < 0:
        raise SourceError(f"{name}: no video stream that OpenCV can read")
    raise StreamError(f"{name}: the stream ended after {number + 1} frames")


def open_source(source: str) -> tuple[cv2.VideoCapture, float]:
    """Open a live source, a GStreamer pipeline ("... ! appsink") or a video file.

    Returns:
        The capture, and seconds per frame of a file; 0: live.

    Raises:
        SourceError: it cannot be opened.
    """
    name = public_name(source)
    if _is_pipeline(source):
        return open_pipeline(source, name), 0.0
    if is_live(source):
        return _open(source, name), 0.0
    capture = open_video(source)
    rate_hz = capture.get(cv2.CAP_PROP_FPS)
    return capture, 1 / rate_hz if _MIN_HZ <= rate_hz <= _MAX_HZ else 1 / _DEFAULT_HZ


def _is_pipeline(source: str) -> bool:
    return " ! " in source


def _open(source: str, name: str) -> cv2.VideoCapture:
    if _URL.match(source):
        return open_stream(source, name, _TIMEOUT_MS)
    return open_camera(f"/dev/video{source}" if source.isdecimal() else source, name)


class _Newest:
    """Reads a capture in a thread of its own and keeps the newest frame."""

    def __init__(self, capture: cv2.VideoCapture) -> None:
        self._capture = capture
        self._changed = threading.Condition()
        self._frame: tuple[int, NDArray[np.uint8]] | None = None
        self._over = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def take(self) -> tuple[int, NDArray[np.uint8]] | None:
        """Return the newest frame and its number, once there is one; None: the stream is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self._over)
            taken, self._frame = self._frame, None
        return taken

    def close(self) -> None:
        """End the thread; it lasts until the read in progress returns."""
        self._over = True
        self._thread.join(_JOIN_S)

    def _read(self) -> None:
        number = 0
        try:
            while not self._over and (frame := self._capture.read()[1]) is not None:
                with self._changed:
                    self._frame = number, np.asarray(frame)
                    self._changed.notify()
                number += 1
        finally:
            self._capture.release()
            with self._changed:
                self._over = True
                self._changed.notify()


def public_name(source: str) -> str:
    """Return a source without what may be secret: user, password and query of a URL."""
    if _is_pipeline(source):
        return "GStreamer pipeline"
    if not _URL.match(source):
        return one_line(source)
    scheme, _, rest = source.partition("://")
    return one_line(f"{scheme}://{rest.partition('?')[0].partition('#')[0].rpartition('@')[2]}")
