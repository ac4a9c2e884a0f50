"""Camera of the detector's own process: its frames reach the detector without DDS."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

import cv2
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from drone_kd.core.arrays import UInt8Array
from drone_kd.media.errors import SourceError
from drone_kd.media.live_streams import open_source, public_name
from drone_kd.media.videos import checked_frame
from drone_kd.paths import expanded
from drone_kd.ros.detection_messages import bgr_to_image
from drone_kd.ros.local_image import LocalImage
from drone_kd.ros.survival import describe

FRAME_ID = "camera"
# Pause before the camera is opened again: doubled until it gives a frame.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_STOP_SECONDS = 1.0
# A driver's own time of capture is believed if it is not older.
_MAX_AGE_S = 1.0
# OpenCV itself opens one stream at a time; who waits for that here may still give up.
_OPENING = threading.Lock()
# Threads inside a read that did not end in time.
_left: list[threading.Thread] = []


def is_reading() -> bool:
    """Return whether a camera that was given up is still inside a read: nothing can interrupt it.

    At its end the interpreter would abort such a thread, and the process with it.
    """
    return any(thread.is_alive() for thread in _left)


class LocalCamera:
    """Reads a camera, and hands its frames over; for others they are published on the topic.

    A file is played at its own rate, again and again. A camera that is lost is opened again, with
    growing pauses.

    Args:
        node: owner of the publisher.
        topic: on which images are published while somebody subscribes; remapping applies.
        source: device, URL, GStreamer pipeline or video file.
        callback: called by a thread of the camera with the full topic name and each image.

    Raises:
        ValueError: the path begins with "~", and that user has no home folder.

    Attributes:
        topic: its full name.
        is_open: whether frames are handed over.
    """

    def __init__(
        self, node: Node, topic: str, source: str, callback: Callable[[str, LocalImage], None]
    ) -> None:
        self.topic = node.resolve_topic_name(topic)
        self._source = str(expanded(source)) if source.startswith("~") else source
        self._name = public_name(self._source)
        self._callback, self._now = callback, node.get_clock().now
        self._log = node.get_logger()
        self.is_open = True
        self._closing = threading.Event()
        self._problem = f"{self._name} is being opened"
        self._count = 0  # of frames
        self._images = _ImagePublisher(node, topic)
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self._thread.start()

    def match(self, wanted: bool = True) -> None:
        """Hand no frames over while they are not wanted; the camera stays open."""
        self.is_open = wanted

    def why_silent(self) -> str:
        """Return why no image comes."""
        return self._problem or f"{self._name} sends nothing"

    def destroy(self) -> None:
        """Stop; a read in progress may last until its time limit, and is without effect then."""
        self._closing.set()
        self._images.close()
        self._thread.join(_STOP_SECONDS)
        _left[:] = [thread for thread in (*_left, self._thread) if thread.is_alive()]

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._closing.is_set():
            before = self._count
            try:
                repeats = self._play()
                problem = f"{self._name}: the stream ended after {self._count - before} frames"
            except Exception as error:  # of any kind: it is opened again
                repeats = False
                problem = str(error) if isinstance(error, SourceError) else describe(error)
            if self._count > before:
                pause_s = _FIRST_PAUSE_S
            if self._closing.is_set() or (repeats and self._count > before):
                continue
            self._problem = f"{problem}; it is opened again in {pause_s:g} s"
            self._log.warning(self._problem)
            self._closing.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _play(self) -> bool:
        """Read frames until the source ends; return whether it is a file; SourceError."""
        if (opened := self._open()) is None:
            return False
        capture, period_s = opened
        due = monotonic()
        try:
            while not self._closing.is_set() and capture.grab():
                now = self._now()  # 0 in a simulation whose clock has not come
                age_ns = min(_age_ns(capture, period_s), now.nanoseconds)
                stamp = now - Duration(nanoseconds=age_ns)
                if self.is_open or self._images.wanted():
                    is_read, image = capture.retrieve()
                    if not is_read or self._closing.is_set():
                        break
                    self._hand_over(checked_frame(image, self._name), stamp.to_msg())
                self._count, self._problem = self._count + 1, ""
                if period_s:
                    due = max(due + period_s, monotonic())  # late frames are not caught up on
                    self._closing.wait(due - monotonic())
        finally:
            capture.release()
        return period_s > 0

    def _open(self) -> tuple[cv2.VideoCapture, float] | None:
        """Return the result of `open_source`; None: stopped while another camera was opened."""
        is_next = _OPENING.acquire(timeout=_LONGEST_PAUSE_S)  # the other opening may never end
        try:
            return None if self._closing.is_set() else open_source(self._source)
        finally:
            if is_next:
                _OPENING.release()

    def _hand_over(self, image: UInt8Array, stamp: object) -> None:
        frame = LocalImage(Header(stamp=stamp, frame_id=FRAME_ID), lambda: image)
        if self.is_open:
            self._callback(self.topic, frame)
        self._images.offer(frame)


def _age_ns(capture: cv2.VideoCapture, period_s: float) -> int:
    """Return the time since capture by the clock of a V4L2 driver; 0: it is not known."""
    if period_s or capture.getBackendName() != "V4L2":
        return 0
    age_s = monotonic() - capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3
    return round(age_s * 1e9) if 0 <= age_s < _MAX_AGE_S else 0


class _ImagePublisher:
    """Publishes the newest image in a thread of its own, while somebody subscribes."""

    def __init__(self, node: Node, topic: str) -> None:
        self._node, self._log = node, node.get_logger()
        self._publisher = node.create_publisher(Image, topic, QoSProfile(depth=1))
        self._condition = threading.Condition()
        self._newest: LocalImage | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._publish, name="image", daemon=True)
        self._thread.start()

    def wanted(self) -> bool:
        """Return whether somebody subscribes."""
        with self._condition:  # or it may be destroyed meanwhile
            return not self._closed and self._publisher.get_subscription_count() > 0

    def offer(self, image: LocalImage) -> None:
        """Publish an image next, if there is a subscriber; return at once."""
        if self.wanted():
            with self._condition:
                self._newest = image
                self._condition.notify()

    def close(self) -> None:
        """End the thread and destroy the publisher."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join(_STOP_SECONDS)
        self._node.destroy_publisher(self._publisher)

    def _publish(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._newest is not None or self._closed)
                if self._closed or self._newest is None:
                    return
                image, self._newest = self._newest, None
            try:
                self._publisher.publish(bgr_to_image(image.pixels(), image.header))
            except Exception as error:  # for this image only
                if not self._closed:
                    self._log.warning(
                        f"Image not published: {describe(error)}", throttle_duration_sec=10.0
                    )
            del image  # it is large
