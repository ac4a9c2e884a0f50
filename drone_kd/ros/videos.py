"""Video streams of cameras: each is decoded in a thread of its own, packet by packet."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

from sensor_msgs.msg import CompressedImage, Image

from drone_kd.media.video_streams import PacketError, StreamDecoder, codec_of
from drone_kd.ros.inbox import Frame, stamp_ns
from drone_kd.ros.local_image import LocalImage
from drone_kd.ros.params import SettingsError
from drone_kd.text import one_line

# Waiting packets of a camera. Beyond that the decoder is too slow.
_MAX_PACKETS, _MAX_BYTES = 60, 64_000_000
_STOP_SECONDS = 1.0
# A packet that is so many usual distances after the last one follows a loss: H.264 numbers frames
# from 0 to 15 (some encoders further), and 16 lost packets leave no gap in the numbers.
_JUMP = 12
_DISTANCES = 9  # the median of so many is the usual one
_JUMPED = "the stamps jump: packets were lost, or the camera paused"
# An encoder's `pts` that was one more in so many packets counts them; others tell the time.
_COUNTED = 8
_MISSING = "pts jumps: packets were lost, or the camera left frames out"
_SLOW = "decoding is too slow"
# Of the topics behind the base name, by transport, as in image_transport.
SUFFIXES: Mapping[str, str] = {"raw": "", "compressed": "/compressed", "ffmpeg": "/ffmpeg"}


def packet_type() -> type:
    """Return the type of a packet's message; SettingsError: it is not installed."""
    try:
        from ffmpeg_image_transport_msgs.msg import FFMPEGPacket  # deferred: an add-on
    except ImportError:
        raise SettingsError(
            "image_transport: ffmpeg needs the messages ffmpeg_image_transport_msgs: "
            "apt install ros-$ROS_DISTRO-ffmpeg-image-transport-msgs"
        ) from None
    return FFMPEGPacket


def is_video(message: Any) -> bool:
    """Return whether a message is a packet of a video stream, not an image of its own."""
    if isinstance(message, CompressedImage):
        return codec_of(message.format) is not None
    return not isinstance(message, Image | LocalImage)


class Videos:
    """Decodes the cameras' packets, in order.

    Args:
        offer: called by a thread of the camera with each frame, whose message is a `LocalImage`.
        drop: called by that thread with a packet that gives none, and why.
        leave: called by that thread with a packet of parameter sets alone.
        max_pixels: returns the limit of a frame's pixels.
    """

    def __init__(
        self,
        offer: Callable[[Frame], None],
        drop: Callable[[Frame, Exception], None],
        leave: Callable[[Frame], None],
        max_pixels: Callable[[], int],
    ) -> None:
        self._streams = defaultdict[str, _Stream](partial(_Stream, offer, drop, leave, max_pixels))

    def put(self, frame: Frame) -> None:
        """Decode a packet; return at once."""
        self._streams[frame.camera].put(frame)

    def skip(self, camera: str, reason: str) -> None:
        """Start anew at a key frame: packets of this camera are left out."""
        if camera in self._streams:
            self._streams[camera].skip(reason)

    def clear(self, reason: str) -> list[Frame]:
        """Remove and return all waiting packets; what follows them starts at a key frame."""
        return [frame for stream in self._streams.values() for frame in stream.clear(reason)]

    def close(self) -> None:
        """End the threads."""
        for stream in self._streams.values():
            stream.close()


class _Stream:
    """The waiting packets of a camera, and the thread that decodes them."""

    def __init__(
        self,
        offer: Callable[[Frame], None],
        drop: Callable[[Frame, Exception], None],
        leave: Callable[[Frame], None],
        max_pixels: Callable[[], int],
    ) -> None:
        self._offer, self._drop, self._leave = offer, drop, leave
        self._max_pixels = max_pixels
        self._stamps, self._numbers = _Stamps(), _Numbers()
        self._condition = threading.Condition()
        self._packets: deque[Frame] = deque()
        self._bytes = 0
        self._skipped = ""  # why packets before the next one are missing
        self._closed = False
        self._decoder: tuple[str, int, StreamDecoder] | None = None
        self._thread = threading.Thread(target=self._decode, name="video", daemon=True)
        self._thread.start()

    def put(self, frame: Frame) -> None:
        late: list[Frame] = []
        with self._condition:
            self._packets.append(frame)
            self._bytes += _size(frame)
            if len(self._packets) > _MAX_PACKETS or self._bytes > _MAX_BYTES:
                late = self._clear(_SLOW)
            self._condition.notify()
        for packet in late:
            self._drop(packet, PacketError(f"{_SLOW}: lower the camera's rate or size"))

    def skip(self, reason: str) -> None:
        with self._condition:
            self._skipped = reason

    def clear(self, reason: str) -> list[Frame]:
        with self._condition:
            return self._clear(reason) if self._packets else []

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._clear("")
            self._condition.notify()
        self._thread.join(_STOP_SECONDS)

    def _clear(self, reason: str) -> list[Frame]:
        packets = list(self._packets)
        self._packets.clear()
        self._bytes, self._skipped = 0, reason
        return packets

    def _decode(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._packets or self._closed)
                if self._closed:
                    return
                frame = self._packets.popleft()
                self._bytes -= _size(frame)
                skipped, self._skipped = self._skipped, ""
            if self._stamps.jumps(stamp_ns(frame.message.header)):
                skipped = skipped or _JUMPED
            # Only an FFMPEGPacket has it.
            if self._numbers.jumps(getattr(frame.message, "pts", 0)):
                skipped = skipped or _MISSING
            try:
                if skipped and self._decoder is not None:
                    self._decoder[2].lose(skipped)
                image = self._image(frame)
                if image is None:
                    self._leave(frame)
                elif not self._closed:
                    self._offer(image)
            except Exception as error:  # of any kind, for this packet only
                self._drop(frame, error)
            del frame

    def _image(self, frame: Frame) -> Frame | None:
        """Return the frame of a packet; None: it has parameter sets alone."""
        message: Any = frame.message
        text = message.format if isinstance(message, CompressedImage) else message.encoding
        codec, max_pixels = codec_of(text), self._max_pixels()
        if codec is None:
            raise PacketError(f'expected a stream in H.264 or H.265, got "{one_line(text, 50)}"')
        if self._decoder is None or self._decoder[:2] != (codec, max_pixels):
            self._decoder = codec, max_pixels, StreamDecoder(codec, max_pixels)
        found = self._decoder[2].decode(bytes(message.data))
        if found is None:
            return None
        topic = frame.topic
        for suffix in SUFFIXES.values():
            topic = topic.removesuffix(suffix)
        return frame._replace(topic=topic, message=LocalImage(message.header, found.pixels))


class _Stamps:
    """The stamps of a camera's packets, and the usual distance between them."""

    def __init__(self) -> None:
        self._last_ns = 0
        self._distances_ns: deque[int] = deque(maxlen=_DISTANCES)

    def jumps(self, now_ns: int) -> bool:
        """Return whether a stamp is so far from the last one that packets are missing."""
        distance_ns = now_ns - self._last_ns if self._last_ns and now_ns else 0
        self._last_ns = now_ns
        if distance_ns <= 0:  # no stamps, a clock that was set back, or parameter sets
            return False
        known = len(self._distances_ns) > 0
        usual_ns = median(self._distances_ns) if known else 0
        self._distances_ns.append(distance_ns)
        return known and distance_ns > _JUMP * usual_ns


class _Numbers:
    """The `pts` of a camera's packets, if it counts them."""

    def __init__(self) -> None:
        self._last = 0
        self._counted = 0

    def jumps(self, number: int) -> bool:
        """Return whether packets are missing before the one of this number."""
        step, self._last = number - self._last, number
        if step == 0:  # none, or parameter sets and their frame
            return False
        known = self._counted >= _COUNTED
        self._counted = self._counted + 1 if step == 1 else 0
        return known and step != 1


def _size(frame: Frame) -> int:
    """Return the bytes of a packet."""
    message: Any = frame.message
    return len(message.data)
