"""Annotated pictures, for those who look at them."""

from __future__ import annotations

from array import array

import cv2
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import CompressedImage, Image

from drone_kd.ros.detection_messages import bgr_to_image
from drone_kd.ros.qos import DETECTIONS_QOS
from drone_kd.ros.worker import Result
from drone_kd.visualization import draw_detections, draw_text

_JPEG_QUALITY = 80


class DebugImages:
    """Publishes a camera's pictures with what was found in them, if somebody listens.

    Args:
        node: its owner.
        prefix: of the topics `debug/image` and `debug/image/compressed`.
    """

    def __init__(self, node: LifecycleNode, prefix: str) -> None:
        self._node = node
        topic = f"{prefix}debug/image"
        self._raw = node.create_lifecycle_publisher(Image, topic, DETECTIONS_QOS)
        self._compressed = node.create_lifecycle_publisher(
            CompressedImage, f"{topic}/compressed", DETECTIONS_QOS
        )

    def wanted(self) -> bool:
        """Tell whether somebody listens."""
        return bool(
            self._raw.get_subscription_count() or self._compressed.get_subscription_count()
        )

    def publish(self, result: Result) -> None:
        """Draw and publish, each form only if somebody listens to it."""
        if result.picture.reduction > 1 or not self.wanted():  # a listener came a moment ago
            return
        image = draw_detections(result.picture.image, result.detections, result.classes)
        draw_text(image, f"{len(result.detections)} found, {result.latency_ms():.0f} ms")
        header = result.frame.message.header
        if self._raw.get_subscription_count():
            self._raw.publish(bgr_to_image(image, header))
        if self._compressed.get_subscription_count():
            _, jpeg = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))
            data = array("B")
            data.frombytes(jpeg.tobytes())
            self._compressed.publish(
                CompressedImage(header=header, format="bgr8; jpeg compressed bgr8", data=data)
            )

    def destroy(self) -> None:
        """Take the publishers down."""
        self._node.destroy_lifecycle_publisher(self._raw)
        self._node.destroy_lifecycle_publisher(self._compressed)
