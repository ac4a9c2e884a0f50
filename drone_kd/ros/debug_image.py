"""Debug images: frames with their detections drawn in."""

from __future__ import annotations

import contextlib
import threading

from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import CompressedImage, Image

from drone_kd.ros.detection_messages import bgr_to_image, bgr_to_jpeg
from drone_kd.ros.pipeline import Result
from drone_kd.ros.qos import create_output
from drone_kd.ros.survival import Failures, log_failure
from drone_kd.visualization import draw_detections, draw_text

_JPEG_QUALITY = 80
# Longest wait for the end of a drawing.
_STOP_SECONDS = 1.0


class DebugImages:
    """Publishes a camera's annotated frames on PREFIXdebug/image[/compressed] for subscribers.

    A thread of its own draws the newest frame; frames that come meanwhile replace each other, so
    that detection never waits for a viewer.
    """

    def __init__(self, node: LifecycleNode, prefix: str, failures: Failures) -> None:
        self._log, self._failures = node.get_logger(), failures
        topic = f"{prefix}debug/image"
        with contextlib.ExitStack() as stack:
            self._raw = create_output(node, Image, topic)
            stack.callback(node.destroy_lifecycle_publisher, self._raw)
            self._compressed = create_output(node, CompressedImage, f"{topic}/compressed")
            stack.callback(node.destroy_lifecycle_publisher, self._compressed)
            self._publishers = stack.pop_all()
        self._condition = threading.Condition()
        self._newest: tuple[Result, float] | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start to draw."""
        self._thread = threading.Thread(target=self._draw_frames, name="debug image", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop drawing; the current frame is finished."""
        with self._condition:
            thread, self._thread, self._newest = self._thread, None, None
            self._condition.notify()
        if thread is not None:
            thread.join(_STOP_SECONDS)

    def wanted(self) -> bool:
        """Return whether there is a subscriber."""
        publishers = self._raw, self._compressed
        return any(publisher.get_subscription_count() for publisher in publishers)

    def offer(self, result: Result) -> None:
        """Draw a frame next, if there is a subscriber; return at once."""
        # A reduced image was decoded before there was a subscriber.
        if result.decoded.reduction > 1 or not self.wanted():
            return
        with self._condition:
            self._newest = result, result.latency_ms()
            self._condition.notify()

    def destroy(self) -> None:
        """Destroy the publishers."""
        self._publishers.close()

    def _draw_frames(self) -> None:
        while True:
            with self._condition:
                while self._newest is None and self._thread is threading.current_thread():
                    self._condition.wait()
                if self._newest is None or self._thread is not threading.current_thread():
                    return
                (result, latency_ms), self._newest = self._newest, None
            try:
                self._draw(result, latency_ms)
            except Exception as error:  # of any kind, for this frame only
                log_failure(self._log, self._failures, "Debug image", error)
            del result  # its image is large

    def _draw(self, result: Result, latency_ms: float) -> None:
        """Draw and publish, each topic only if it has a subscriber."""
        image = draw_detections(result.decoded.image, result.detections, result.classes)
        draw_text(image, f"{len(result.detections)} found, {latency_ms:.0f} ms")
        header = result.frame.message.header
        if self._raw.get_subscription_count():
            self._raw.publish(bgr_to_image(image, header))
        if self._compressed.get_subscription_count():
            self._compressed.publish(bgr_to_jpeg(image, _JPEG_QUALITY, header))
