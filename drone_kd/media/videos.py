"""Videos and cameras: opened so that nothing else is read, with a limit on the size of a frame.

FFmpeg, inside OpenCV, recognises a file by its content, and some formats (playlists, ffconcat,
SDP) are lists of other files and hosts. So the container is chosen here, and other protocols are
refused.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np

from drone_kd.core.arrays import UInt8Array
from drone_kd.media.compressed_images import MAX_PIXELS
from drone_kd.media.errors import SourceError
from drone_kd.media.mp4_files import is_within_limits
from drone_kd.parsing import ParseError, open_regular
from drone_kd.text import is_plain, one_line

# Otherwise FFmpeg prints lines of its own about a damaged file.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
# OpenCV reads its options from the environment when it opens a capture.
_OPENING = threading.Lock()
_NETWORK = "http,https,httpproxy,tcp,tls,udp,rtp,srtp,rtsp,rtsps,rtmp,rtmps,srt,crypto,data"
_HEAD_BYTES = 1024
_DAMAGED = "not a video that OpenCV can read (damaged?)"
_CLOSED = "the stream cannot be opened: check the address, the network and the codec"
# FFmpeg's name of a container by the bytes at a position. A recording may start in the middle
# of a stream: some go by the suffix, too.
_CONTAINERS = (
    ("avi", 8, (b"AVI ", b"AVIX")),
    ("mov", 4, (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")),
    ("matroska", 0, (b"\x1aE\xdf\xa3",)),
    ("mpeg", 0, (b"\0\0\x01\xba",)),
    ("mpegvideo", 0, (b"\0\0\x01\xb3",)),
    ("m4v", 0, (b"\0\0\x01\xb0", b"\0\0\x01\x00")),
)
# First byte and length of the packets of a transport stream.
_PACKETS = ((0, 188), (4, 192), (0, 204))
# A larger file whose disk space is less than this part of it consists of holes.
_HOLES_BYTES, _HOLES_PART = 16_000_000, 16
_BY_SUFFIX = {".ts": "mpegts", ".mpg": "mpeg", ".mpeg": "mpeg"}
# FFmpeg's decoders that a file may use. Those of still images (PNG, TIFF, EXR) are left out: a
# frame of some kilobytes may have any size, whatever the container says. Sound is not decoded, but
# FFmpeg would look for its parameters for seconds.
_DECODERS = (
    "h264,hevc,vvc,av1,libdav1d,libaom-av1,vp8,libvpx,vp9,libvpx-vp9,mjpeg,mpeg4,mpeg1video,"
    "mpeg2video,mpegvideo,msmpeg4v1,msmpeg4v2,msmpeg4,h263,h263p,wmv1,wmv2,wmv3,vc1,theora,prores,"
    "dnxhd,dvvideo,ffv1,huffyuv,ffvhuff,rawvideo,"
    "aac,ac3,eac3,mp2,mp2float,mp3,mp3float,opus,vorbis,flac,pcm_s16le,pcm_s16be,pcm_alaw,pcm_mulaw"
)
_UNKNOWN_PIXELS = -1
# A recording from the middle of a stream may need 30 s, here in µs, until its first key frame.
_PROBE = "analyzeduration;30000000|probesize;20000000"


def open_video(path: str | Path, max_pixels: int = MAX_PIXELS) -> cv2.VideoCapture:
    """Open a video file; no other file or host is opened, whatever it names.

    SourceError: it cannot be read, is no video, consists of still images (PNG in AVI), or its
    frames have `max_pixels` or more.
    """
    try:
        with open_regular(path) as file:
            container = _container(file.read(_HEAD_BYTES), Path(path).suffix.lower())
            usable = container is not None and not _consists_of_holes(file)
            usable = usable and (container != "mov" or is_within_limits(file))
            if not usable:
                raise SourceError(f"{one_line(path)}: {_DAMAGED}")
            options = (
                f"protocol_whitelist;file|input_format;{container}|codec_whitelist;{_DECODERS}"
            )
            # The file that was checked, whatever the path means by now. An absolute path is never
            # taken for a protocol or an option.
            checked = f"/proc/self/fd/{file.fileno()}"
            capture = _open(checked, f"{options}|{_PROBE}", [])
    except ParseError as error:
        raise SourceError(str(error)) from None
    except OSError as error:
        raise SourceError(f"{one_line(path)}: {error.strerror}") from None
    # FFmpeg knows the pixels of a stream once it decoded some with one of these decoders. OpenCV
    # itself would use any other.
    if (
        capture.isOpened()
        and capture.getBackendName() == "FFMPEG"
        and capture.get(cv2.CAP_PROP_CODEC_PIXEL_FORMAT) == _UNKNOWN_PIXELS
    ):
        capture.release()
        raise SourceError(f"{one_line(path)}: expected a video codec such as H.264, got another")
    return _checked(capture, one_line(path), max_pixels, _DAMAGED)


def open_stream(
    url: str, name: str, timeout_ms: int, max_pixels: int = MAX_PIXELS
) -> cv2.VideoCapture:
    """Open a network stream, which may refer to hosts, never to files; errors: see `open_video`.

    `name` is that of messages: the URL without its secrets.
    """
    if not is_plain(url):  # OpenCV would end the process for one that is not UTF-8
        raise SourceError(f"{name}: expected an address in UTF-8 without control characters")
    limits = (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, cv2.CAP_PROP_READ_TIMEOUT_MSEC)
    timeouts = [value for limit in limits for value in (limit, timeout_ms)]
    # OpenCV's own default, which it drops if there are options.
    options = os.environ.get(_OPTIONS, "rtsp_flags;prefer_tcp")
    capture = _open(url, f"{options}|protocol_whitelist;{_NETWORK}", timeouts)
    return _checked(capture, name, max_pixels, _CLOSED)


def open_camera(device: str, name: str, max_pixels: int = MAX_PIXELS) -> cv2.VideoCapture:
    """Open a camera by the path of its device; errors: see `open_video`."""
    if not Path(device).is_char_device():
        raise SourceError(f"{one_line(device)}: no such camera")
    if not os.access(device, os.R_OK):
        raise SourceError(f"{one_line(device)}: no permission: add the user to the group `video`")
    return _checked(cv2.VideoCapture(device), name, max_pixels, _CLOSED)


def open_pipeline(pipeline: str, name: str, max_pixels: int = MAX_PIXELS) -> cv2.VideoCapture:
    """Open a GStreamer pipeline that ends in appsink; errors: see `open_video`.

    It may read any file and host, and run any element: only from the one who starts the process.
    """
    if cv2.CAP_GSTREAMER not in cv2.videoio_registry.getBackends():
        raise SourceError(
            f"{name}: expected an OpenCV with GStreamer, got one without; use that of the "
            "distribution (python3-opencv), or a device, URL or file"
        )
    return _checked(cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER), name, max_pixels, _CLOSED)


def check_frame_size(width: float, height: float, name: str, max_pixels: int = MAX_PIXELS) -> None:
    """Raise SourceError if a frame of a video has `max_pixels` or more."""
    if not width * height < max_pixels:
        limit, got = f"{max_pixels / 1e6:g} megapixels", f"{width:.0f}x{height:.0f}"
        raise SourceError(f"{name}: expected frames of less than {limit}, got {got}")


def checked_frame(image: Any, name: str, max_pixels: int = MAX_PIXELS) -> UInt8Array:
    """Return a frame of a video or camera if it is uint8 (h, w, 3) of less than `max_pixels`.

    SourceError: it is not. A pipeline of GStreamer may give grey, YUV or 16 bits.
    """
    frame = np.asarray(image)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        kind = "" if frame.dtype == np.uint8 else f" {frame.dtype}"
        raise SourceError(
            f"{name}: expected BGR frames, got {frame.shape}{kind}; "
            "add videoconvert ! video/x-raw,format=BGR"
        )
    check_frame_size(frame.shape[1], frame.shape[0], name, max_pixels)
    return frame


def _container(head: bytes, suffix: str) -> str | None:
    for container, at, magics in _CONTAINERS:
        if head[at : at + 4] in magics:
            return container
    if any(head[at : at + 1] == head[at + n : at + n + 1] == b"G" for at, n in _PACKETS):
        return "mpegts"
    return _BY_SUFFIX.get(suffix)


def _consists_of_holes(file: BinaryIO) -> bool:
    """Return whether almost nothing of a large file is stored.

    FFmpeg reads parts of a file, such as the attachments of a Matroska, into memory.
    """
    status = os.fstat(file.fileno())
    stored = 512 * status.st_blocks  # 0: the file system does not tell
    return status.st_size > _HOLES_BYTES and 0 < stored < status.st_size // _HOLES_PART


def _open(source: str, options: str, parameters: list[int]) -> cv2.VideoCapture:
    with _OPENING:
        before = os.environ.get(_OPTIONS)
        os.environ[_OPTIONS] = options
        try:
            return cv2.VideoCapture(source, _backend(), parameters)
        finally:
            if before is None:
                del os.environ[_OPTIONS]
            else:
                os.environ[_OPTIONS] = before


def _backend() -> int:
    # Others would take "01" in a file's name for the first of many images.
    has_ffmpeg = cv2.CAP_FFMPEG in cv2.videoio_registry.getStreamBackends()
    return cv2.CAP_FFMPEG if has_ffmpeg else cv2.CAP_ANY


def _checked(
    capture: cv2.VideoCapture, name: str, max_pixels: int, problem: str
) -> cv2.VideoCapture:
    if not capture.isOpened():
        raise SourceError(f"{name}: {problem}")
    size = (capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    try:
        check_frame_size(*size, name, max_pixels)
    except SourceError:
        capture.release()
        raise
    return capture
