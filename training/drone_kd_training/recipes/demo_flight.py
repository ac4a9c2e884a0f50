# SPDX-License-Identifier: AGPL-3.0-or-later
"""A short flight on this machine: detector node and camera node as processes, and a subscriber.

The subscriber receives images and detections over DDS as an autopilot would. So the latency is
that of a subscriber: from the camera's stamp to the received detections.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from drone_kd.backends.onnx_runtime import read_spec
from drone_kd.core.detections import Detections
from drone_kd.media.raw_images import raw_to_bgr
from drone_kd.processes import running
from drone_kd.progress import Progress
from drone_kd.simulation.scoring.flight_record import columns
from drone_kd.simulation.simulate import ros_arguments
from drone_kd.visualization import contact_sheet, draw_detections
from drone_kd_training.data.folders import open_new, real_folder, write_image
from drone_kd_training.recipes.runner import TIMEOUT_S, ros_session

IMAGES, IMAGE_INTERVAL_S = 12, 1.5
NODE_LOG = "nodes.log"


def fly(
    model: Path, camera: Mapping[str, object], output: Path, seconds: float, rate_hz: float = 10.0
) -> dict[str, Any]:
    """Fly a model (.onnx) in front of the camera node, and write annotated images.

    ``camera``: parameters of that node: a ``source`` that it shows, or those of a rendered flight.
    ``output``: folder for frame-NNN.jpg, contact-sheet.jpg and the log of both nodes. ``seconds``:
    duration that is measured, from the first detections on. Returns "frames_in", "frames_out",
    "detections", "latency_p50_ms", "latency_p95_ms", "rate_hz" and "seconds". Raises RuntimeError
    if a process ended, or no detections were received.
    """
    real_folder(output)
    nodes = {
        "drone_kd.ros.detector": {"autostart": True, "model": str(model.resolve())},
        "drone_kd.simulation.camera_node": {"rate": rate_hz, **camera},
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(ros_session())
        log = stack.enter_context(open_new(output / NODE_LOG))
        processes = {}
        for module, parameters in nodes.items():
            command = [sys.executable, "-m", module, *ros_arguments(parameters)]
            processes[module] = stack.enter_context(running(command, stdout=log, stderr=log))
        subscriber = _Subscriber(read_spec(model).classes)
        stack.callback(subscriber.node.destroy_node)
        elapsed = _measure(subscriber, processes, seconds, Path(log.name))
    for number, image in enumerate(subscriber.images):
        write_image(output / f"frame-{number:03d}.jpg", image)
    if subscriber.images:
        sheet = contact_sheet(subscriber.images, columns=3, width=1920)
        write_image(output / "contact-sheet.jpg", sheet)
    p50, p95 = np.percentile(subscriber.latencies_ms, (50, 95))
    return {
        "frames_in": subscriber.frames_in,
        "frames_out": len(subscriber.latencies_ms),
        "detections": subscriber.detections,
        "latency_p50_ms": float(p50),
        "latency_p95_ms": float(p95),
        "rate_hz": rate_hz,
        "seconds": round(elapsed, 1),
    }


def _measure(
    subscriber: _Subscriber, processes: dict[str, subprocess.Popen], seconds: float, log: Path
) -> float:
    """Wait for the first detections, then count for ``seconds``; return the seconds measured."""

    def check() -> None:
        for module, process in processes.items():
            if process.poll() is not None:
                code = process.returncode
                raise RuntimeError(f"{module} ended with exit code {code}: see {log}")

    subscriber.spin(TIMEOUT_S, check, until=lambda: bool(subscriber.latencies_ms))
    subscriber.restart()
    started = time.monotonic()
    with Progress("Fly", seconds, "s") as progress:

        def is_over() -> bool:
            elapsed = time.monotonic() - started
            progress.update(min(elapsed, seconds) - progress.done)
            return elapsed >= seconds and bool(subscriber.latencies_ms)

        subscriber.spin(seconds + TIMEOUT_S, check, until=is_over)
    return time.monotonic() - started


class _Subscriber:
    """Counts images and detections, and keeps annotated images spread over the flight."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        import rclpy  # offline commands run without ROS 2
        from sensor_msgs.msg import Image
        from vision_msgs.msg import Detection2DArray

        self._classes = classes
        self.node = rclpy.create_node("flight_listener")
        self.executor = rclpy.executors.SingleThreadedExecutor()
        self.executor.add_node(self.node)
        # Reliable, so that every image of the camera counts; the detector takes the newest only.
        self.node.create_subscription(Image, "image", self._on_image, 5)
        topic = "detector/detections"
        self.node.create_subscription(Detection2DArray, topic, self._on_detections, 10)
        self.restart()

    def restart(self) -> None:
        """Count from zero."""
        self.frames_in = self.detections = 0
        self.latencies_ms: list[float] = []
        self.images: list[np.ndarray] = []
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()
        self._next_image = time.monotonic()

    def spin(self, seconds: float, check: Callable[[], None], until: Callable[[], bool]) -> None:
        """Handle messages until a condition holds; RuntimeError if it does not in time."""
        deadline = time.monotonic() + seconds
        while not until():
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"no detections within {seconds:.0f} s, {self.frames_in} images received"
                )
            self.executor.spin_once(timeout_sec=0.1)
            check()

    def _on_image(self, message: Any) -> None:
        self.frames_in += 1
        self._recent[_stamp_ns(message)] = raw_to_bgr(message)
        while len(self._recent) > 20:
            self._recent.popitem(last=False)

    def _on_detections(self, message: Any) -> None:
        stamp = _stamp_ns(message)
        self.latencies_ms.append((time.time_ns() - stamp) / 1e6)
        self.detections += len(message.detections)
        image = self._recent.get(stamp)
        full = len(self.images) >= IMAGES
        if image is None or full or time.monotonic() < self._next_image:
            return
        self._next_image = time.monotonic() + IMAGE_INTERVAL_S
        found = _from_message(message, self._classes)
        self.images.append(draw_detections(image, found, self._classes))


def _stamp_ns(message: Any) -> int:
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def _from_message(message: Any, classes: tuple[str, ...]) -> Detections:
    """Return a Detection2DArray as detections of a model's classes."""
    from drone_kd.simulation.truth_messages import boxes_of

    labels, scores, xyxy = columns(boxes_of(message, "score"))
    ids = np.array([classes.index(label) for label in labels], np.int64)
    return Detections(xyxy, np.array(scores, np.float32), ids)
