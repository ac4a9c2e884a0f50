"""Ground station: publishes images to a detector node and collects its messages."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, TypeVar, cast

import numpy as np
import pytest
import rclpy
from rcl_interfaces.msg import SetParametersResult
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray, LabelInfo

from drone_kd.backends import Backend
from drone_kd.ros.detection_messages import bgr_to_image
from drone_kd.ros.detector_node import DetectorNode
from drone_kd.ros.run import StopFlag
from drone_kd.ros.survival import met_destroyed_entity

# Only a failing test waits this long: the tests await events, and a busy machine is slow.
WAIT_SECONDS = 60.0

_Message = TypeVar("_Message")
_Result = TypeVar("_Result")


class HeldInference:
    """Holds each inference of a backend until it is released.

    Attributes:
        calls: inferences begun.
    """

    def __init__(self, backend: Backend) -> None:
        self._infer = backend.infer
        self._permits = threading.Semaphore(0)
        self._open = threading.Event()
        self.calls = 0
        backend.infer = self._hold  # type: ignore[method-assign]  # a stand-in for a slow network

    def release(self) -> None:
        """Let one inference pass."""
        self._permits.release()

    def open(self) -> None:
        """Let all inferences pass from now on."""
        self._open.set()
        self._permits.release()

    def _hold(self, batch: np.ndarray) -> np.ndarray:
        self.calls += 1
        if not self._open.is_set():
            assert self._permits.acquire(timeout=2 * WAIT_SECONDS), (
                "expected the test to release the inference"
            )
        return self._infer(batch)


class Ground:
    """The other side of the topics: publishes images, collects what comes back."""

    def __init__(self) -> None:
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
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while not self._closing.is_set():
            try:
                self.executor.spin_once(timeout_sec=0.1)
            except Exception as error:  # as `run_node`
                if not met_destroyed_entity(error):
                    raise

    def add_detector(self, stopping: StopFlag | None = None, wait: bool = True) -> DetectorNode:
        """Run a DetectorNode in this process, on the same executor; wait for its autostart."""
        self.detector = DetectorNode(stopping)
        self.executor.add_node(self.detector)
        if wait and self.detector.get_parameter("autostart").value:
            self.wait_until(self._has_started, "it is configured and activated, or failed")
        return self.detector

    def _has_started(self) -> bool:
        assert self.detector is not None
        return self.detector._transition is not None and not self.detector.is_in_transition()

    @property
    def backend(self) -> Backend:
        """The backend of the detector in this process."""
        assert self.detector is not None
        slot = self.detector._slot
        assert slot is not None, "the detector is not configured"
        return slot.model.backend

    @contextlib.contextmanager
    def held_inference(self) -> Iterator[HeldInference]:
        """Hold each inference of the detector until it is released, or the block ends."""
        held = HeldInference(self.backend)
        try:
            yield held
        finally:
            held.open()

    def dropped(self, reason: str, camera: str = "") -> int:
        """Return how many frames the detector dropped for a reason."""
        assert self.detector is not None
        return self.detector.reports()[camera].dropped[reason]

    def received(self, camera: str = "") -> int:
        """Return how many frames the detector received."""
        assert self.detector is not None
        return self.detector.reports()[camera].received

    def set_parameter(self, name: str, value: object) -> None:
        """Set a parameter of the detector, which must accept it."""
        result = self.try_parameter(name, value)
        assert result.successful, result.reason

    def try_parameter(self, name: str, value: Any) -> SetParametersResult:
        """Set a parameter of the detector in the executor's thread, as its service does."""
        assert self.detector is not None
        parameters = [Parameter(name, value=value)]
        (result,) = self._in_executor(self.detector.set_parameters, parameters)
        return result

    def call(self, service_type: Any, name: str, request: Any) -> Any:
        """Call a service; return its response."""
        client: Any = self.node.create_client(service_type, name)
        self.wait_until(client.service_is_ready, f"{name} is available")
        future = client.call_async(request)
        self.wait_until(future.done, f"{name} responds")
        self.node.destroy_client(client)
        return future.result()

    def offer_images(self, reliability: ReliabilityPolicy = ReliabilityPolicy.RELIABLE) -> None:
        """Start to publish images."""
        qos = QoSProfile(depth=10, reliability=reliability)
        self.images = self.node.create_publisher(Image, "image", qos)

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for a condition on the state of other threads or of the ROS graph."""
        deadline = monotonic() + WAIT_SECONDS
        while not condition():
            if monotonic() > deadline:
                pytest.fail(f"expected within {WAIT_SECONDS:g} s: {what}")
            self._tick.clear()
            self._tick.wait(0.1)

    def wait_for_detector(self) -> None:
        """Wait until the detector subscribes to the images and offers detections."""
        self.wait_for_subscriber(self.images)
        self.wait_for_publisher("/detector/detections")

    def wait_for_subscriber(self, publisher: Publisher) -> None:
        """Wait for one subscriber with the publisher's reliability.

        A detector that still changes to that reliability may lose an image meanwhile.
        """
        topic = publisher.topic_name

        def is_subscribed() -> bool:
            found = self.node.get_subscriptions_info_by_topic(topic)
            return [subscriber.qos_profile.reliability for subscriber in found] == [
                publisher.qos_profile.reliability
            ] and publisher.get_subscription_count() == 1

        self.wait_until(lambda: is_subscribed() and self._is_matched(topic), f"{topic} is read")

    def wait_for_publisher(self, topic: str) -> None:
        """Wait until a topic that this node subscribes to has its publisher."""
        self.wait_until(
            lambda: self.node.count_publishers(topic) > 0 and self._is_matched(topic),
            f"{topic} is published",
        )

    def _is_matched(self, topic: str) -> bool:
        """Return whether both ends of a topic know each other; before, messages are lost.

        What a detector in another process knows is unknown: see `exchange`.
        """
        nodes = [self.node] if self.detector is None else [self.node, self.detector]

        def know_each_other() -> bool:
            writers = [w for node in nodes for w in node.publishers if w.topic_name == topic]
            readers = [r for node in nodes for r in node.subscriptions if r.topic_name == topic]
            # On Humble a reader cannot tell.
            known = [r.get_publisher_count() for r in readers if hasattr(r, "get_publisher_count")]
            return min(known, default=1) >= max(len(writers), 1) and all(
                writer.get_subscription_count() >= len(readers) for writer in writers
            )

        return self._in_executor(know_each_other)

    def _in_executor(self, function: Callable[..., _Result], *arguments: object) -> _Result:
        """Call a function where the detector's callbacks run, so that they do not interfere."""
        task = self.executor.create_task(function, *arguments)
        self.wait_until(task.done, "the executor is free")
        return cast(_Result, task.result())

    def send(self, image: np.ndarray | Image, seconds: float = 1) -> Header:
        """Publish a BGR image or an image message; return its header."""
        if isinstance(image, np.ndarray):
            image = bgr_to_image(image, Header(frame_id="camera"))
        image.header.stamp.sec = int(seconds)
        image.header.stamp.nanosec = round(seconds % 1 * 1e9)
        self.images.publish(image)
        return image.header

    def send_and_wait(self, image: np.ndarray | Image, seconds: float = 1) -> None:
        """Publish an image, and wait until the detector in this process has received it."""
        before = self.received()
        self.send(image, seconds)
        self.wait_until(lambda: self.received() > before, "the image is received")

    def exchange(self, image: np.ndarray, seconds: int = 1) -> Detection2DArray:
        """Send an image to another process until its detections come back.

        One direction may be connected before the other, and best-effort does not repeat.
        """
        deadline = monotonic() + WAIT_SECONDS
        while monotonic() < deadline:
            self.send(image, seconds)
            with contextlib.suppress(queue.Empty):
                found = self.detections.get(timeout=0.2)
                if found.header.stamp.sec == seconds:
                    return found
        pytest.fail(f"expected detections within {WAIT_SECONDS:g} s")

    def receive(self) -> Detection2DArray:
        """Wait for the next detections."""
        return self.detections.get(timeout=WAIT_SECONDS)

    def receive_until(
        self,
        messages: queue.Queue[_Message],
        condition: Callable[[_Message], object],
        what: str,
    ) -> _Message:
        """Return the first message that meets a condition; drop those before it."""
        deadline = monotonic() + WAIT_SECONDS
        while (left := deadline - monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                message = messages.get(timeout=left)
                if condition(message):
                    return message
        pytest.fail(f"expected a message within {WAIT_SECONDS:g} s: {what}")

    def log(self) -> str:
        """Return what this process has logged."""
        # Not `capfd.readouterr`, which loses what is written while it reads.
        return os.pread(2, os.fstat(2).st_size, 0).decode(errors="replace")

    def wait_for_log(self, text: str) -> str:
        """Wait for a log line of this process that contains `text`."""

        def lines() -> list[str]:
            return [line for line in self.log().splitlines() if text in line]

        self.wait_until(lines, f"{text!r} is logged")
        return lines()[-1]

    def collect(self, message_type: type, topic: str, depth: int = 10) -> queue.Queue[Any]:
        """Subscribe to a topic, and wait until its publisher is there."""
        received: queue.Queue[Any] = queue.Queue()
        self.node.create_subscription(message_type, topic, received.put, depth)
        self.wait_for_publisher(topic)
        return received

    def labels(self) -> queue.Queue[LabelInfo]:
        """Subscribe to the label info as a late subscriber."""
        received: queue.Queue[LabelInfo] = queue.Queue()
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.node.create_subscription(LabelInfo, "/detector/label_info", received.put, latched)
        return received

    def close(self) -> None:
        """Stop everything."""
        self._closing.set()
        self._thread.join()
        self.executor.shutdown()
        if self.detector is not None:
            self.detector.stop()
            self.detector.destroy_node()
        self.node.destroy_node()
