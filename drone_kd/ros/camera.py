"""A camera without hardware: pictures, a video or a generated flight on the topic `image`.

ros2 run drone_kd camera --ros-args -p source:=flight.mp4 -p rate:=30.0
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from drone_kd.ros.messages import bgr_to_image
from drone_kd.ros.params import declare_camera_parameters
from drone_kd.ros.run import run_node
from drone_kd.sources import SourceError, read_frames

# Reliable, so that every subscriber matches; depth 1, so that nobody gets an old frame.
IMAGE_QOS = QoSProfile(depth=1)

_FRAMES_AHEAD = 4
_STOP_SECONDS = 1.0
_END = None


class CameraNode(Node):
    """Publishes the frames of a source at a steady rate.

    Args:
        finished: set once a source that does not loop has ended.

    Raises:
        ParameterException: a parameter given at the start cannot be used.
        SourceError: the source has no frame that can be read.
    """

    def __init__(self, finished: threading.Event) -> None:
        super().__init__("camera")
        declare_camera_parameters(self)
        self._finished = finished
        self._frame_id = self.get_parameter("frame_id").value
        frames = self._read()
        first = next(frames, _END)
        if first is _END:
            raise SourceError(f"{self.get_parameter('source').value}: no picture can be read")
        self._ahead: queue.Queue[np.ndarray | Exception | None] = queue.Queue(_FRAMES_AHEAD)
        self._ahead.put(first)
        self._publisher = self.create_publisher(Image, "image", IMAGE_QOS)
        self._stopping = threading.Event()
        self._reader = threading.Thread(target=self._fill, args=(frames,), daemon=True)
        self._reader.start()
        # On the machine's own clock: a camera also runs where simulated time stands still.
        self.create_timer(
            1 / self.get_parameter("rate").value,
            self._publish_next,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )

    def stop(self) -> bool:
        """End the reader and wait for it; False if it hangs."""
        self._stopping.set()
        self._reader.join(_STOP_SECONDS)
        return not self._reader.is_alive()

    def _read(self) -> Iterator[np.ndarray]:
        """Yield uint8 (h, w, 3) BGR frames until the source ends, or for ever."""
        source = self.get_parameter("source").value
        if not source:
            from drone_kd.scene import fly  # deferred: a replay does without the generator

            flight = fly(
                seed=self.get_parameter("seed").value,
                width=self.get_parameter("width").value,
                height=self.get_parameter("height").value,
                fps=self.get_parameter("rate").value,
            )
            yield from (frame.image for frame in flight)
            return
        while True:
            empty = True
            for _, image in read_frames(source, self._report):
                empty = False
                yield image
            # A source that gives nothing would be read for ever without a pause.
            if empty or not self.get_parameter("loop").value:
                return

    def _fill(self, frames: Iterator[np.ndarray]) -> None:
        """Decode or render ahead, so that one slow frame does not break the rate."""
        try:
            for frame in frames:
                self._put(frame)
                if self._stopping.is_set():
                    return
            self._put(_END)
        except Exception as error:  # handed to the main thread, which ends the node with it
            self._put(error)

    def _put(self, item: np.ndarray | Exception | None) -> None:
        while not self._stopping.is_set():
            try:
                return self._ahead.put(item, timeout=0.1)
            except queue.Full:
                continue

    def _publish_next(self) -> None:
        try:
            item = self._ahead.get_nowait()
        except queue.Empty:
            self.get_logger().warning(
                "the source is slower than the rate: frames come late", throttle_duration_sec=5.0
            )
            return
        if isinstance(item, Exception):
            raise item
        if item is _END:
            # The last frame must not die with the process.
            self._publisher.wait_for_all_acked(Duration(seconds=1))
            self._finished.set()
            return
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id=self._frame_id)
        self._publisher.publish(bgr_to_image(item, header))

    def _report(self, error: SourceError) -> None:
        self.get_logger().warning(f"left out: {error}", throttle_duration_sec=5.0)


def main(args: list[str] | None = None) -> int:
    """Run the camera until its source ends, or SIGINT or SIGTERM; see `run_node`."""
    return run_node("camera", CameraNode, args)


if __name__ == "__main__":
    sys.exit(main())
