"""H.264 and H.265 packet by packet: frames that a lost packet has spoiled are never returned.

Required: PyAV 16 or later (`pip install 'drone_kd[video]'`): before FFmpeg 8, a frame of H.265
whose references are missing looks like any other.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np

from drone_kd.core.arrays import UInt8Array
from drone_kd.media.compressed_images import MAX_PIXELS
from drone_kd.media.h264_headers import FrameNumbers

# With 16 reference frames FFmpeg holds 24 of 1.5 bytes per pixel: 300 MB of 4K, 580 MB of these.
MAX_STREAM_PIXELS = 16_000_000
# A key frame of 4K at the highest quality that encoders offer is smaller.
MAX_PACKET_BYTES = 16_000_000
_INSTALL = "expected PyAV 16 or later, which decodes video: pip install 'drone_kd[video]'"
_MIN_VERSION = 16

H264, H265 = "h264", "hevc"
_NAMES = ((re.compile("h[._]?264|x264|avc"), H264), (re.compile("h[._]?265|x265|hevc"), H265))
# Types of units: those of a frame, and of a frame that needs no other (IDR; H.265: also CRA, BLA).
_FRAMES = {H264: frozenset({1, 2, 3, 4, 5}), H265: frozenset(range(32))}
_KEYS = {H264: frozenset({5}), H265: frozenset(range(16, 24))}
# Those of parameter sets.
_SETS = {H264: frozenset({7, 8}), H265: frozenset({32, 33, 34})}
_START = re.compile(b"\0\0\1")
# Units of a packet: slices and metadata; encoders write some dozen.
_MAX_UNITS = 1000
# Others take more memory per pixel: 10 bits, colours of full resolution.
_FORMATS = frozenset({"yuv420p", "yuvj420p", "nv12", "gray"})
# Of parameter sets that come before their frame.
_MAX_HEADER_BYTES = 100_000
_FIRST = "none has come yet"


class PacketError(ValueError):
    """A packet gives no frame; the message is one line."""


def codec_of(text: str) -> str | None:
    """Return "h264" or "hevc" for the format or encoding of a message; None: no such stream.

    Names of encoders are known, too, and what follows a semicolon is ignored: "h265",
    "libx264", "hevc_nvenc", "h264;yuv420p;bgr8;bgr8".
    """
    first = text[:100].partition(";")[0].lower()
    return next((codec for pattern, codec in _NAMES if pattern.search(first)), None)


class StreamDecoder:
    """Decodes the packets of a stream, in order, from the first key frame on.

    After a packet that is missing or damaged, it continues with the next key frame.

    Args:
        codec: of `codec_of`.
        max_pixels: a frame has fewer, and at most `MAX_STREAM_PIXELS`.

    Raises:
        PacketError: PyAV is not installed.
    """

    def __init__(self, codec: str, max_pixels: int = MAX_PIXELS) -> None:
        self._av = _library()
        self._codec, self._max_pixels = codec, min(max_pixels, MAX_STREAM_PIXELS)
        self._numbers = FrameNumbers()
        self._headers = b""
        self._sets: frozenset[int] = frozenset()  # types that have come
        self._reason = _FIRST  # why a key frame is awaited; empty: it is not
        self._context = self._av.CodecContext.create(codec, "r")
        self._context.options = {"max_pixels": str(self._max_pixels), "err_detect": "explode"}
        # Threads per slice add no delay, those per frame do.
        self._context.thread_type, self._context.thread_count = "SLICE", 2
        self._context.flags |= self._av.codec.context.Flags.low_delay

    def decode(self, packet: bytes) -> VideoFrame | None:
        """Return the frame of a packet in Annex B format; None: parameter sets alone.

        Raises:
            PacketError: the packet is damaged, comes before a key frame, or needs one that is
                missing; or the stream is one that this decoder refuses.
        """
        if len(packet) > MAX_PACKET_BYTES:
            limit = f"{MAX_PACKET_BYTES / 1e6:g} MB"
            raise self._lost(f"expected packets of up to {limit}, got {len(packet)} bytes")
        units = _units(packet)
        if not units:
            limit = f"1 to {_MAX_UNITS} units with start codes (Annex B)"
            raise self._lost(f"expected a packet of {limit}, got another")
        kinds = {self._kind(unit) for unit in units}
        is_key = bool(kinds & _KEYS[self._codec])
        self._sets |= kinds & _SETS[self._codec]
        gap = self._gap(units)
        if not kinds & _FRAMES[self._codec]:
            # FFmpeg reads them with a frame.
            self._headers = (self._headers + packet)[-_MAX_HEADER_BYTES:]
            return None
        if self._reason and not is_key:
            raise PacketError(f"waiting for a key frame ({self._reason})")
        if self._sets != _SETS[self._codec]:
            raise self._lost("parameter sets have not come; make the encoder repeat them")
        if gap and not is_key:
            raise self._lost(gap)
        if self._reason and self._context.is_open:  # it has decoded
            self._context.flush_buffers()
        packet, self._headers = self._headers + packet, b""
        return self._decoded(packet, is_key)

    def lose(self, reason: str) -> None:
        """Wait for the next key frame: a packet will not be given to `decode`."""
        self._reason = self._reason or reason

    def _kind(self, unit: bytes) -> int:
        return unit[0] & 31 if self._codec == H264 else unit[0] >> 1 & 63

    def _gap(self, units: list[bytes]) -> str:
        """Return a line if a frame is missing before these units; empty: none is known to be."""
        try:
            missing = self._codec == H264 and self._numbers.is_gap(units)
        except ValueError as error:
            return f"the packet is damaged: {error}"
        return "a packet was lost" if missing else ""

    def _decoded(self, packet: bytes, is_key: bool) -> VideoFrame:
        try:
            frames = self._context.decode(self._av.Packet(packet))
        except (self._av.FFmpegError, MemoryError, ValueError):
            limit = f"{self._max_pixels / 1e6:g}"
            raise self._lost(
                f"a packet was lost or damaged, or its frame has {limit} megapixels or more"
            ) from None
        if self._context.has_b_frames or (is_key and not frames):
            raise self._lost(
                "expected a frame per packet, got a stream that is delayed (B frames): set the "
                "encoder to low latency without B frames"
            )
        if not frames or frames[-1].is_corrupt:
            raise self._lost("a packet was lost or damaged")
        frame = frames[-1]
        if frame.format.name not in _FORMATS:
            got = frame.format.name
            raise self._lost(f"expected 8 bits and 4:2:0 (yuv420p), got {got}")
        if frame.width * frame.height >= self._max_pixels:
            raise self._lost(f"expected fewer pixels, got {frame.width}x{frame.height}")
        self._reason = ""
        return VideoFrame(frame)

    def _lost(self, reason: str) -> PacketError:
        self._reason = reason
        return PacketError(reason)


class VideoFrame:
    """A decoded frame; its colours are converted when they are needed."""

    def __init__(self, frame: Any) -> None:
        self._frame = frame

    def pixels(self) -> UInt8Array:
        """Return the frame as (h, w, 3) BGR."""
        return np.asarray(self._frame.to_ndarray(format="bgr24"), np.uint8)


def _units(packet: bytes) -> list[bytes]:
    """Return the NAL units of a packet (Annex B) without their start codes; none: too many."""
    found = itertools.islice(_START.finditer(packet), _MAX_UNITS + 1)
    starts = [match.end() for match in found]
    if len(starts) > _MAX_UNITS:
        return []
    ends = [start - 3 for start in starts[1:]] + [len(packet)]
    return [packet[start:end] for start, end in zip(starts, ends, strict=False) if start < end]


def _library() -> Any:
    """Return PyAV; PacketError: it is missing or too old."""
    try:
        import av  # deferred: an extra
    except ImportError:
        raise PacketError(f"{_INSTALL}; found none") from None
    if int(av.__version__.partition(".")[0]) < _MIN_VERSION:
        raise PacketError(f"{_INSTALL}; found {av.__version__}")
    return av
