"""Debug images: frames with their detections drawn in."""

from __future__ import annotations

import contextlib

from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import CompressedImage, Image

from drone_kd.ros.detection_messages import bgr_to_image, bgr_to_jpeg
from drone_kd.ros.pipeline import Result
from drone_kd.ros.qos import DETECTIONS_QOS
from drone_kd.visualization import draw_detections, draw_text

_JPEG_QUALITY = 80


class DebugImages:
    """Publishes a camera's annotated frames on PREFIXdebug/image[/compressed] for subscribers."""

    def __init__(self, node: LifecycleNode, prefix: str) -> None:
        self._node = node
        topic = f"{prefix}debug/image"
        self._raw = node.create_lifecycle_publisher(Image, topic, DETECTIONS_QOS)
        self._compressed = node.create_lifecycle_publisher(
            CompressedImage, f"{topic}/compressed", DETECTIONS_QOS
        )

    def wanted(self) -> bool:
        """Return whether there is a subscriber."""
        publishers = self._raw, self._compressed
        return any(publisher.get_subscription_count() for publisher in publishers)

    def publish(self, result: Result) -> None:
        """Draw and publish, each topic only if it has a subscriber."""
        # A reduced image was decoded before there was a subscriber.
        if result.decoded.reduction > 1 or not self.wanted():
            return
        image = draw_detections(result.decoded.image, result.detections, result.classes)
        draw_text(image, f"{len(result.detections)} found, {result.latency_ms():.0f} ms")
        header = result.frame.message.header
        if self._raw.get_subscription_count():
            self._raw.publish(bgr_to_image(image, header))
        if self._compressed.get_subscription_count():
            self._compressed.publish(bgr_to_jpeg(image, _JPEG_QUALITY, header))

    def destroy(self) -> None:
        """Destroy the publishers."""
        with contextlib.ExitStack() as stack:
            for publisher in (self._raw, self._compressed):
                stack.callback(self._node.destroy_lifecycle_publisher, publisher)
