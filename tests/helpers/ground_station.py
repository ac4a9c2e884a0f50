"""The other side of a detector node: publishes images and collects what comes back."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable

import numpy as np
import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray, LabelInfo

from drone_kd.ros.detection_messages import bgr_to_image
from drone_kd.ros.detector_node import DetectorNode

WAIT_SECONDS = 15.0


class Ground:
    """The other side of the topics: publishes images, collects what comes back."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        self._log = ""
        self.node = rclpy.create_node("ground")
        self.detections: queue.Queue[Detection2DArray] = queue.Queue()
        self.offer_images()
        self.node.create_subscription(
            Detection2DArray, "/detector/detections", self.detections.put, 10
        )
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.detector: DetectorNode | None = None
        self._tick = threading.Event()
        self.node.create_timer(0.01, self._tick.set)
        self._thread = threading.Thread(target=self.executor.spin, daemon=True)
        self._thread.start()

    def add_detector(self) -> DetectorNode:
        """Run a DetectorNode in this process, on the same executor."""
        self.detector = DetectorNode()
        self.executor.add_node(self.detector)
        return self.detector

    def offer_images(self, reliability: ReliabilityPolicy = ReliabilityPolicy.RELIABLE) -> None:
        """Start to publish images."""
        qos = QoSProfile(depth=10, reliability=reliability)
        self.images = self.node.create_publisher(Image, "image", qos)

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition on the state of other threads or of the ROS graph."""
        for _ in range(int(WAIT_SECONDS / 0.01)):
            if condition():
                return
            self._tick.clear()
            self._tick.wait(0.1)
        pytest.fail(f"waited {WAIT_SECONDS:g} s in vain until {what}")

    def wait_for_detector(self) -> None:
        """Wait until the detector hears our images as we offer them, and we its detections."""

        def connected() -> bool:
            listeners = self.node.get_subscriptions_info_by_topic("/image")
            return (
                [listener.qos_profile.reliability for listener in listeners]
                == [self.images.qos_profile.reliability]
                and self.images.get_subscription_count() == 1
                and self.node.count_publishers("/detector/detections") == 1
            )

        self.wait_until(connected, "the detector is connected")

    def send(self, image: np.ndarray | Image, seconds: float = 1) -> Header:
        """Publish a bgr8 picture or an image message; returns its header."""
        if isinstance(image, np.ndarray):
            image = bgr_to_image(image, Header(frame_id="camera"))
        image.header.stamp.sec = int(seconds)
        image.header.stamp.nanosec = round(seconds % 1 * 1e9)
        self.images.publish(image)
        return image.header

    def exchange(self, image: np.ndarray, seconds: int = 1) -> Detection2DArray:
        """Send a picture to another process until detections come back.

        One end of a connection may be up before the other, and best-effort does not repeat.
        """
        for _ in range(int(WAIT_SECONDS / 0.2)):
            self.send(image, seconds)
            with contextlib.suppress(queue.Empty):
                return self.detections.get(timeout=0.2)
        pytest.fail(f"no detections within {WAIT_SECONDS:g} s")

    def receive(self) -> Detection2DArray:
        """Wait for the next detections."""
        return self.detections.get(timeout=WAIT_SECONDS)

    def log(self) -> str:
        """Return what this process has logged."""
        self._log += self._capfd.readouterr().err
        return self._log

    def wait_for_log(self, text: str) -> str:
        """Wait for a log line of this process that contains `text`."""

        def lines() -> list[str]:
            return [line for line in self.log().splitlines() if text in line]

        self.wait_until(lambda: bool(lines()), f"{text!r} is logged")
        return lines()[-1]

    def collect(self, message_type: type, topic: str, depth: int = 10) -> queue.Queue:
        """Subscribe to a topic, and wait until its publisher is there."""
        received: queue.Queue = queue.Queue()
        self.node.create_subscription(message_type, topic, received.put, depth)
        self.wait_until(lambda: self.node.count_publishers(topic) > 0, f"{topic} is published")
        return received

    def labels(self) -> queue.Queue[LabelInfo]:
        """Subscribe to the label info, as somebody who comes late."""
        received: queue.Queue[LabelInfo] = queue.Queue()
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.node.create_subscription(LabelInfo, "/detector/label_info", received.put, latched)
        return received

    def close(self) -> None:
        """Stop everything."""
        self.executor.shutdown()
        self._thread.join()
        if self.detector is not None:
            self.detector.stop()
            self.detector.destroy_node()
        self.node.destroy_node()
