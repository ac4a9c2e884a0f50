"""A camera as the node's users see it: detections, debug images, statistics, log lines."""

from __future__ import annotations

import contextlib
from time import monotonic, perf_counter

from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import Float64
from vision_msgs.msg import Detection2DArray

from drone_kd.ros.debug_image import DebugImages
from drone_kd.ros.detection_messages import to_detection_array
from drone_kd.ros.pipeline import Result
from drone_kd.ros.qos import create_output
from drone_kd.ros.stats import CameraReport, CameraStats
from drone_kd.ros.survival import Failures

# A camera that stays silent is logged again after this time.
_REMIND_SECONDS = 10.0


class Camera:
    """Publishes what is detected in a camera's frames, and counts them.

    Attributes:
        stats: of the frames since activation.
        debug: the annotated frames.
    """

    def __init__(self, node: LifecycleNode, name: str, failures: Failures) -> None:
        prefix = f"~/{name}/" if name else "~/"
        self._log = node.get_logger()
        self.stats = CameraStats()
        self._reminder = "", 0.0  # why it was silent, and when that was logged
        with contextlib.ExitStack() as stack:
            self._detections = create_output(node, Detection2DArray, f"{prefix}detections")
            stack.callback(node.destroy_lifecycle_publisher, self._detections)
            self._times = create_output(node, Float64, f"{prefix}processing_time_ms")
            stack.callback(node.destroy_lifecycle_publisher, self._times)
            self.debug = DebugImages(node, prefix, failures)
            stack.callback(self.debug.destroy)
            self._publishers = stack.pop_all()

    def start(self) -> None:
        """Count anew, and start to draw debug images."""
        self.stats = CameraStats()
        self._reminder = "", 0.0
        self.debug.start()

    def stop(self) -> None:
        """Stop drawing debug images."""
        self.debug.stop()

    def wanted(self) -> bool:
        """Return whether anyone subscribes to the detections, their times or debug images."""
        outputs = self._detections, self._times
        subscribers = sum(output.get_subscription_count() for output in outputs)
        return subscribers > 0 or self.debug.wanted()

    def publish(self, result: Result) -> None:
        """Publish the detections of a frame, and the time since its reception."""
        header = result.frame.message.header
        self._detections.publish(to_detection_array(result.detections, result.classes, header))
        time_ms = (perf_counter() - result.frame.received) * 1e3
        self._times.publish(Float64(data=time_ms))

    def remind(self, topic: str, report: CameraReport, why_silent: str) -> None:
        """Log that it is silent at first, when the reason changes, and every 10 s."""
        before, since = self._reminder
        now = monotonic()
        if why_silent and (why_silent != before or now - since > _REMIND_SECONDS):
            self._log.warning(f"No image on {topic} for {report.silent_s:.1f} s: {why_silent}")
            self._reminder = why_silent, now
        elif not why_silent:
            self._reminder = "", 0.0

    def destroy(self) -> None:
        """Destroy the publishers."""
        self._publishers.close()
