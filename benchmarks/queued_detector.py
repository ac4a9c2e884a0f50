"""The detector as most nodes have it, for comparison: every frame waits its turn in a queue.

python -m benchmarks.queued_detector --ros-args -p depth:=10
"""

from __future__ import annotations

import threading

from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from vision_msgs.msg import Detection2DArray

from drone_kd.detector import load_detector
from drone_kd.ros.detection_messages import to_detection_array
from drone_kd.ros.image_conversion import image_to_bgr
from drone_kd.ros.run import run_node


class QueuedDetector(Node):
    """Detects in one frame after the other."""

    def __init__(self, finished: threading.Event) -> None:
        super().__init__("detector")
        depth = self.declare_parameter("depth", 10).value
        confidence = self.declare_parameter("confidence", 0.25).value
        self._detector = load_detector(confidence=confidence)
        self._publisher = self.create_publisher(Detection2DArray, "~/detections", 10)
        self.create_subscription(Image, "image", self._on_image, QoSProfile(depth=depth))

    def _on_image(self, message: Image) -> None:
        found = self._detector(image_to_bgr(message))
        classes = self._detector.backend.spec.classes
        self._publisher.publish(to_detection_array(found, classes, message.header))

    def stop(self) -> bool:
        """Nothing runs beside the executor."""
        return True


if __name__ == "__main__":
    run_node("detector", QueuedDetector, None)
