"""ROS 2 node `camera`: publishes images, a video, a bag or a generated flight.

    ros2 run drone_kd camera --ros-args -p source:=flight.mp4 -p rate:=30.0

Each frame is published on `image` with its `camera_info`. If the boxes are known,
`~/ground_truth` has them for every frame with the same stamp, dropped frames included.

Frame n shows the scene n / rate seconds after the start, and its stamp is that time. Frames that
the machine cannot make in time are left out; it never plays in slow motion.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from rclpy.time import Time
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray

from drone_kd.media.bags import is_bag
from drone_kd.media.image_files import SourceError
from drone_kd.ros.detection_messages import bgr_to_image
from drone_kd.ros.run import StopFlag, run_node
from drone_kd.ros.survival import Surviving, describe
from drone_kd.simulation.camera_frames import FramesAhead, NumberedFrame, generated, in_time
from drone_kd.simulation.declare import declare_camera_parameters
from drone_kd.simulation.replay import LabelledFrame, read_bag, read_labels, recorded
from drone_kd.simulation.scene import FlightPlan
from drone_kd.simulation.truth_messages import to_camera_info, truth_to_message

# Reliable, so that every subscriber matches; depth 1, so that no subscriber gets a stale frame.
IMAGE_QOS = QoSProfile(depth=1)
# Deep enough for a subscriber that is busy for a while: these messages are small.
SMALL_QOS = QoSProfile(depth=100)

# A detector that has discovered the camera may still change its quality of service.
_SETTLE_S = 1.0
_CLOCK_S = 0.01
_DELAY_S = 0.002
# On a busy machine DDS may take seconds to resend lost messages.
_REPAIR_S = 5


class CameraNode(Surviving, Node):  # type: ignore[misc]  # the mixin's signatures
    """Publishes the frames of a source at a steady rate.

    Args:
        finished: set at the end of the flight, or of a source that does not loop.

    Raises:
        ParameterException: a parameter has the wrong type or is out of range.
        SourceError: the source has no readable frame, or a parameter value is invalid.
    """

    ends_with = (SourceError,)

    def __init__(self, finished: StopFlag) -> None:
        super().__init__("camera")
        declare_camera_parameters(self)
        self._finished = finished
        self._frame_id = self._value("frame_id")
        self._outage, self._jump = self._pair("outage"), self._pair("clock_jump")
        self._focal_px: float | None = None
        self._rate_hz = self._value("rate")
        self._ahead = FramesAhead(self._rate_hz)
        first = self._ahead.start(self._frames())
        if first is None or first.frame is None:
            raise SourceError(f"{self._value('source')}: no image can be read")
        self._images = self.create_publisher(Image, "image", IMAGE_QOS)
        self._infos = self.create_publisher(CameraInfo, "camera_info", SMALL_QOS)
        self._truths = None
        if first.frame.truth is not None:
            self._truths = self.create_publisher(Detection2DArray, "~/ground_truth", SMALL_QOS)
        self._rng = np.random.default_rng(self._value("seed"))
        self._delayed: deque[tuple[float, np.ndarray, Header]] = deque()
        # On the steady clock: when the flight may begin.
        self._settled: float | None = None
        self._last = -1  # number of the last frame published or dropped
        self.published = self.lost = self.not_made = 0
        self._delay_s = 0.0  # largest of a frame behind its time
        # Steady time: the camera also runs while simulated time stands still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1 / self._rate_hz, self._tick, clock=steady)
        if self._value("delay_ms"):
            self.create_timer(_DELAY_S, self._publish_delayed, clock=steady)
        self._time_zero: float | None = None  # start of simulated time, on the steady clock
        if self._value("sim_time"):
            self._time_zero = time.monotonic()
            clock = self.create_publisher(ClockMessage, "/clock", 10)
            self.create_timer(_CLOCK_S, lambda: self._publish_clock(clock), clock=steady)

    def stop(self) -> bool:
        """Stop the reader and log frame counts; returns False if the reader hangs."""
        stopped = self._ahead.stop()
        self.get_logger().info(
            f"Published {self.published} frames; {self.lost} dropped on purpose, "
            f"{self.not_made} not made in time; largest delay {1000 * self._delay_s:.0f} ms"
        )
        return stopped

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _pair(self, name: str) -> tuple[float, float]:
        pair = tuple(self._value(name))
        if len(pair) != 2 or pair[0] < 0:
            raise SourceError(f"{name}: expected two numbers of seconds, got {list(pair)}")
        return pair

    def _frames(self) -> Iterator[NumberedFrame]:
        if self._value("source"):
            return in_time(self._read(), self._ahead.due, self._rate_hz)
        plan = self._plan()
        self._focal_px = plan.focal_px
        return generated(plan, self._ahead.due)

    def _read(self) -> Iterator[LabelledFrame]:
        """Yield frames until the source ends, or for ever if it loops."""
        source, path = self._value("source"), self._value("labels")
        labels = read_labels(path) if path else None
        while True:
            empty = True
            if is_bag(source):
                frames = read_bag(source, self._report)
            else:
                frames = recorded(source, labels, self._report)
            for frame in frames:
                empty = False
                yield frame
            # An empty source would loop without a pause.
            if empty or not self._value("loop"):
                return

    def _plan(self) -> FlightPlan:
        try:
            return FlightPlan(
                scene=self._value("scene"),
                weather=self._value("weather"),
                flight=self._value("flight"),
                seed=self._value("seed"),
                width=self._value("width"),
                height=self._value("height"),
                fps=self._rate_hz,
                speed_mps=self._value("speed"),
                altitude_m=self._value("altitude") or None,
                motion_px=None if self._value("blur") < 0 else self._value("blur"),
                haze=None if self._value("haze") < 0 else self._value("haze"),
                rolling_ms=self._value("rolling_ms"),
            )
        except ValueError as error:
            raise SourceError(str(error)) from None

    def _tick(self) -> None:
        flown_s = self._flown_s()
        if flown_s is None:
            return
        seconds = self._value("seconds")
        if seconds and flown_s >= seconds:
            self._end()
            return
        try:
            # Ticks keep the phase of the first one, up to the jitter of both.
            made = self._ahead.take(round(flown_s * self._rate_hz))
        except SourceError:
            raise
        except Exception as error:
            raise SourceError(f"{self._value('source')}: {describe(error)}") from None
        if made is None:
            self.get_logger().warning(
                "rate: this machine makes frames slower, some are left out; lower the rate",
                throttle_duration_sec=5.0,
            )
            return
        item = made.frame
        if item is None:
            self._end()
            return
        self.not_made += made.number - self._last - 1
        self._last = made.number
        delay_s = flown_s - made.number / self._rate_hz
        self._delay_s = max(self._delay_s, delay_s)
        stamp = self._now(flown_s) - Duration(seconds=delay_s)
        header = Header(stamp=stamp.to_msg(), frame_id=self._frame_id)
        if self._truths is not None and item.truth is not None:
            self._truths.publish(truth_to_message(item.truth, header))
        start_s, length_s = self._outage
        if self._rng.random() < self._value("drop") or 0 <= flown_s - start_s < length_s:
            self.lost += 1
        elif delay_ms := self._value("delay_ms"):
            self._delayed.append((time.monotonic() + delay_ms / 1000, item.image, header))
        else:
            self._publish(item.image, header)

    def _flown_s(self) -> float | None:
        """Return seconds since the start; None while expected subscribers are missing."""
        now = time.monotonic()
        if self._ahead.began_s is None:
            if self._images.get_subscription_count() < self._value("listeners"):
                self._settled = None
                return None
            if self._settled is None:
                self._settled = now + (_SETTLE_S if self._value("listeners") else 0)
            if now < self._settled:
                return None
            self._ahead.began_s = now
        return now - self._ahead.began_s

    def _now(self, flown_s: float) -> Time:
        """Return the time of the camera's clock, which may have jumped."""
        if self._time_zero is None:
            now = self.get_clock().now()
        else:
            now = Time(nanoseconds=int((time.monotonic() - self._time_zero) * 1e9))
        at, by = self._jump
        return now + Duration(seconds=by) if by and flown_s >= at else now

    def _publish(self, image: np.ndarray, header: Header) -> None:
        self._infos.publish(to_camera_info(image.shape, self._focal_px, header))
        self._images.publish(bgr_to_image(image, header))
        self.published += 1

    def _publish_delayed(self) -> None:
        while self._delayed and self._delayed[0][0] <= time.monotonic():
            _, image, header = self._delayed.popleft()
            self._publish(image, header)

    def _publish_clock(self, publisher: Publisher) -> None:
        began_s = self._ahead.began_s
        flown_s = 0.0 if began_s is None else time.monotonic() - began_s
        publisher.publish(ClockMessage(clock=self._now(flown_s).to_msg()))

    def _end(self) -> None:
        # Wait for delivery: messages under way would be lost with the process.
        self._images.wait_for_all_acked(Duration(seconds=1))
        for publisher in filter(None, (self._infos, self._truths)):
            publisher.wait_for_all_acked(Duration(seconds=_REPAIR_S))
        self._finished.set()

    def _report(self, error: SourceError) -> None:
        self.get_logger().warning(f"Image skipped: {error}", throttle_duration_sec=5.0)


def main(args: list[str] | None = None) -> int:
    """Run the camera until its source ends, or SIGINT or SIGTERM; see `run_node`."""
    return run_node("camera", CameraNode, args, survives=True, ends_with=CameraNode.ends_with)


if __name__ == "__main__":
    sys.exit(main())
