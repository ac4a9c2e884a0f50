"""Node that prints detections: python examples/subscribe.py.

Start the detector first: ros2 launch drone_kd fly.launch.py image:=/camera/image_raw
"""

import contextlib

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from vision_msgs.msg import Detection2DArray

from drone_kd.text import one_line


class Listener(Node):
    """Prints class, score and box centre of each detection; boxes are in pixels of the image."""

    def __init__(self) -> None:
        super().__init__("listener")
        self.create_subscription(Detection2DArray, "detector/detections", self._receive, 10)

    def _receive(self, message: Detection2DArray) -> None:
        stamp = message.header.stamp  # of the camera's image
        for detection in filter(lambda d: d.results, message.detections):
            best = detection.results[0].hypothesis
            centre = detection.bbox.center.position
            print(
                f"{stamp.sec}.{stamp.nanosec:09d} {one_line(best.class_id)} {best.score:.2f} "
                f"at {centre.x:.0f}, {centre.y:.0f}",
                flush=True,
            )


if __name__ == "__main__":
    rclpy.init()
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(Listener())
