"""The detector node: newest image in, detections out.

    ros2 run drone_kd detector --ros-args -r image:=/camera/image_raw -p autostart:=true

Without `autostart` the node waits to be configured and activated, as lifecycle nodes do.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray, LabelInfo

from drone_kd.backends import Backend, open_backend
from drone_kd.config import default_model_path
from drone_kd.detector import Detector
from drone_kd.ros.messages import ImageError, image_to_bgr, to_detection_array, to_label_info
from drone_kd.ros.params import declare_detector_parameters
from drone_kd.ros.run import run_node

DETECTIONS_QOS = QoSProfile(depth=1)
LATCHED_QOS = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)

SILENCE_SECONDS = 5.0
MATCH_SECONDS = 0.5
_THROTTLE_SECONDS = 5.0


class NewestImage:
    """A place for one message between the executor and the worker; a newer one replaces it."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._message: Image | None = None
        self._closed = False

    def put(self, message: Image) -> bool:
        """Leave a message; returns whether it replaced one that nobody took."""
        with self._condition:
            replaced = self._message is not None
            self._message = message
            self._condition.notify()
            return replaced

    def take(self) -> Image | None:
        """Wait for a message; None once the place is closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._closed or self._message is not None)
            message, self._message = self._message, None
            return None if self._closed else message

    def close(self) -> None:
        """Make `take` return None from now on."""
        with self._condition:
            self._closed = True
            self._condition.notify()


@dataclass
class Counts:
    """What became of the images since activation."""

    received: int = 0
    superseded: int = 0  # replaced by a newer one before the worker was free
    dropped: int = 0  # not an image that can be read
    failed: int = 0  # the inference failed
    published: int = 0

    def __str__(self) -> str:
        return (
            f"{self.received} images received, {self.published} published, "
            f"{self.superseded} superseded, {self.dropped} dropped, {self.failed} failed"
        )


class DetectorNode(LifecycleNode):
    """Publishes the detections of the newest image of the topic `image`."""

    def __init__(self) -> None:
        super().__init__("detector")
        declare_detector_parameters(self)
        self.counts = Counts()
        self._backend: Backend | None = None
        self._worker: threading.Thread | None = None
        self._newest = NewestImage()
        self._announced_threshold: float | None = None
        self._received_before = 0
        if self.get_parameter("autostart").value:
            if (
                self.trigger_configure() == TransitionCallbackReturn.SUCCESS
                and self.trigger_activate() == TransitionCallbackReturn.SUCCESS
            ):
                self.get_logger().info("configured and activated itself (autostart)")
        else:
            self.get_logger().info(
                "waiting to be configured and activated (autostart:=true does both): "
                f"ros2 lifecycle set {self.get_fully_qualified_name()} configure"
            )

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and run it once; FAILURE with one line if that cannot be."""
        model = self.get_parameter("model").value
        try:
            self._backend = open_backend(
                model or default_model_path(),
                runtime=self.get_parameter("runtime").value,
                allow_fallback=self.get_parameter("allow_fallback").value,
                progress=self.get_logger().info,
            )
            spec = self._backend.spec
            self._detector()(np.zeros((spec.input_height, spec.input_width, 3), np.uint8))
        except Exception as error:  # rclpy would swallow it without a word
            self._backend = None
            self.get_logger().error(f"cannot configure: {error}")
            return TransitionCallbackReturn.FAILURE
        self._detections_publisher = self.create_lifecycle_publisher(
            Detection2DArray, "~/detections", DETECTIONS_QOS
        )
        self._label_publisher = self.create_lifecycle_publisher(
            LabelInfo, "~/label_info", LATCHED_QOS
        )
        self.get_logger().info(
            f"model {model or 'of the package'}: {spec.input_width}x{spec.input_height}, "
            f"{len(spec.classes)} classes, {self._backend.name}"
        )
        if self._backend.fallback:
            self.get_logger().warning(
                f"ONNX Runtime serves instead of TensorRT: {self._backend.fallback}"
            )
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start to receive, detect and publish."""
        result = super().on_activate(state)
        self.counts = Counts()
        self._announced_threshold = None
        self._announce_labels()
        self._newest = NewestImage()
        self._worker = threading.Thread(target=self._work, name="detector", daemon=True)
        self._worker.start()
        self._subscribe(ReliabilityPolicy.BEST_EFFORT)
        self._match_publishers()
        self._received_before = 0
        # On the machine's own clock: a simulation that stands still must not silence them.
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._watchers = [
            self.create_timer(MATCH_SECONDS, self._match_publishers, clock=clock),
            self.create_timer(SILENCE_SECONDS, self._warn_of_silence, clock=clock),
        ]
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop to receive and publish; says what became of the images."""
        self.stop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Give the model back."""
        result = super().on_cleanup(state)
        self.destroy_lifecycle_publisher(self._detections_publisher)
        self.destroy_lifecycle_publisher(self._label_publisher)
        self._backend = None
        return result

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop to receive and publish, from any state."""
        self.stop()
        return super().on_shutdown(state)

    def stop(self) -> None:
        """End the worker, if it runs, and wait for it."""
        if self._worker is None:
            return
        for timer in self._watchers:
            self.destroy_timer(timer)
        self.destroy_subscription(self._subscription)
        self._newest.close()
        self._worker.join()
        self._worker = None
        self.get_logger().info(f"stopped: {self.counts}")

    def _subscribe(self, reliability: ReliabilityPolicy) -> None:
        # Depth 1: a late frame is worth nothing, so none waits.
        qos = QoSProfile(depth=1, reliability=reliability)
        self._subscription = self.create_subscription(Image, "image", self._on_image, qos)
        self._reliability = reliability

    def _match_publishers(self) -> None:
        """Listen reliably if every publisher offers that, else best-effort, which fits all.

        On a busy computer an image of some megabytes rarely gets through without repair: of
        1080p images 10 % arrived best-effort, and 60 to 75 % reliably.
        """
        publishers = self.get_publishers_info_by_topic(self.resolve_topic_name("image"))
        offered = {publisher.qos_profile.reliability for publisher in publishers}
        wanted = (
            ReliabilityPolicy.RELIABLE
            if offered == {ReliabilityPolicy.RELIABLE}
            else ReliabilityPolicy.BEST_EFFORT
        )
        if offered and wanted != self._reliability:
            self.destroy_subscription(self._subscription)
            self._subscribe(wanted)

    def _on_image(self, message: Image) -> None:
        self.counts.received += 1
        if self._newest.put(message):
            self.counts.superseded += 1

    def _work(self) -> None:
        while (message := self._newest.take()) is not None:
            try:
                self._detect(message)
            except ImageError as error:
                self.counts.dropped += 1
                self.get_logger().warning(
                    f"image dropped: {error} ({self.counts.dropped} dropped so far)",
                    throttle_duration_sec=_THROTTLE_SECONDS,
                )
            except Exception as error:  # whatever it was, the next image deserves its chance
                self.counts.failed += 1
                self.get_logger().error(
                    f"inference failed, nothing is published for this image: "
                    f"{type(error).__name__}: {error} ({self.counts.failed} failed so far)",
                    throttle_duration_sec=_THROTTLE_SECONDS,
                )

    def _detect(self, message: Image) -> None:
        detections = self._detector()(image_to_bgr(message))
        self._announce_labels()
        self._detections_publisher.publish(
            to_detection_array(detections, self._backend.spec.classes, message.header)
        )
        self.counts.published += 1

    def _detector(self) -> Detector:
        """Return a detector with the parameters of this moment."""
        return Detector(
            self._backend,
            confidence=self.get_parameter("confidence").value,
            iou=self.get_parameter("iou").value,
            max_detections=self.get_parameter("max_detections").value,
        )

    def _announce_labels(self) -> None:
        """Publish the class list, again when the threshold in it has changed."""
        threshold = self.get_parameter("confidence").value
        if threshold != self._announced_threshold:
            header = Header(stamp=self.get_clock().now().to_msg())
            self._label_publisher.publish(
                to_label_info(self._backend.spec.classes, threshold, header)
            )
            self._announced_threshold = threshold

    def _warn_of_silence(self) -> None:
        received, self._received_before = self._received_before, self.counts.received
        if received != self.counts.received:
            return
        topic = self.resolve_topic_name("image")
        publishers = self.count_publishers(topic)
        reason = (
            f"{publishers} publisher(s), but nothing arrives; large images over Fast DDS need "
            "FASTDDS_BUILTIN_TRANSPORTS=LARGE_DATA on both sides"
            if publishers
            else "nobody publishes it; remap it with -r image:=/your/topic"
        )
        self.get_logger().warning(f"no image on {topic} for {SILENCE_SECONDS:g} s: {reason}")


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; see `run_node`."""
    return run_node("detector", lambda finished: DetectorNode(), args)


if __name__ == "__main__":
    sys.exit(main())
