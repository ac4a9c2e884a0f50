# SPDX-License-Identifier: AGPL-3.0-or-later
"""A short flight on this machine: detector and camera as processes, and what came out of them.

The third party here only listens: it takes the camera's pictures and the detector's answers from
DDS, as an autopilot would, so that the latency is that of a subscriber, from the camera's stamp to
the detections in hand.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np

from drone_kd.core.detections import Detections
from drone_kd.dds import carry_large_images, stay_on_this_machine
from drone_kd.processes import running
from drone_kd.visualization import contact_sheet, draw_detections

START_TIMEOUT_S = 60.0
PICTURES = 12


def fly(model: Path, source: str, output: Path, seconds: float, rate_hz: float = 10.0) -> dict:
    """Fly ``seconds`` with ``model`` over ``source``, and write annotated frames.

    Args:
        model: a .onnx.
        source: what the camera node shows: a folder, a video, or "" for the procedural flight.
        output: folder for frame-NNN.jpg and contact-sheet.jpg.

    Returns:
        {"frames_in", "frames_out", "detections", "latency_p50_ms", "latency_p95_ms", "rate_hz",
        "seconds"}.

    Raises:
        RuntimeError: a process ended, or no detections came.
    """
    import rclpy  # not needed by anything else offline, and absent where ROS 2 is

    stay_on_this_machine()
    carry_large_images()
    os.environ["ROS_DOMAIN_ID"] = str(random.randint(1, 100))
    node = [
        sys.executable,
        "-m",
        "drone_kd.ros.detector_node",
        "--ros-args",
        "-p",
        "autostart:=true",
    ]
    node += ["-p", f"model:={model.resolve()}"]
    camera = [
        sys.executable,
        "-m",
        "drone_kd.simulation.camera_node",
        "--ros-args",
        "-p",
        f"rate:={rate_hz}",
    ]
    camera += ["-p", f"source:={source}"] if source else []
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(running(command)) for command in (node, camera)]
        rclpy.init()
        stack.callback(rclpy.try_shutdown)
        listener = _Listener()
        stack.callback(listener.node.destroy_node)
        _spin(listener, processes, START_TIMEOUT_S, until=lambda: listener.latencies_ms)
        if not listener.latencies_ms:
            raise RuntimeError(f"no detections within {START_TIMEOUT_S:.0f} s")
        listener.restart()
        started = time.monotonic()
        _spin(listener, processes, seconds, until=lambda: False)
        elapsed = time.monotonic() - started
    if not listener.latencies_ms:
        raise RuntimeError(f"the detector went silent: {listener.frames_in} frames, no detections")
    output.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(listener.pictures):
        cv2.imwrite(str(output / f"frame-{number:03d}.jpg"), picture)
    if listener.pictures:
        cv2.imwrite(
            str(output / "contact-sheet.jpg"),
            contact_sheet(listener.pictures, columns=3, width=1920),
        )
    return {
        "frames_in": listener.frames_in,
        "frames_out": len(listener.latencies_ms),
        "detections": listener.detections,
        "latency_p50_ms": float(np.percentile(listener.latencies_ms, 50)),
        "latency_p95_ms": float(np.percentile(listener.latencies_ms, 95)),
        "rate_hz": rate_hz,
        "seconds": round(elapsed, 1),
    }


class _Listener:
    """Counts pictures and answers, measures latency, and keeps annotated pictures spread over the
    flight.
    """

    def __init__(self) -> None:
        import rclpy
        from sensor_msgs.msg import Image
        from vision_msgs.msg import Detection2DArray

        self.node = rclpy.create_node("flight_listener")
        self.executor = rclpy.executors.SingleThreadedExecutor()
        self.executor.add_node(self.node)
        # Reliable, so that every frame of the camera counts; the detector takes the newest only.
        self.node.create_subscription(Image, "image", self._on_image, 5)
        self.node.create_subscription(
            Detection2DArray, "detector/detections", self._on_detections, 10
        )
        self.restart()

    def restart(self) -> None:
        self.frames_in = self.detections = 0
        self.latencies_ms: list[float] = []
        self.pictures: list[np.ndarray] = []
        self._recent: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._next_picture = time.monotonic()

    def _on_image(self, message) -> None:
        self.frames_in += 1
        picture = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
        picture = picture[:, : message.width * 3].reshape(message.height, message.width, 3)
        self._recent[_stamp(message)] = picture
        while len(self._recent) > 20:
            self._recent.popitem(last=False)

    def _on_detections(self, message) -> None:
        seconds, nanoseconds = _stamp(message)
        self.latencies_ms.append((time.time_ns() - seconds * 10**9 - nanoseconds) / 1e6)
        self.detections += len(message.detections)
        picture = self._recent.get((seconds, nanoseconds))
        if (
            picture is None
            or len(self.pictures) >= PICTURES
            or time.monotonic() < self._next_picture
        ):
            return
        self._next_picture = time.monotonic() + 1.5
        found, names = _from_message(message)
        self.pictures.append(draw_detections(picture, found, names))


def _stamp(message) -> tuple[int, int]:
    return message.header.stamp.sec, message.header.stamp.nanosec


def _from_message(message) -> tuple[Detections, list[str]]:
    names: list[str] = []
    boxes, scores, ids = [], [], []
    for detection in message.detections:
        centre, hypothesis = detection.bbox.center.position, detection.results[0].hypothesis
        half_w, half_h = detection.bbox.size_x / 2, detection.bbox.size_y / 2
        boxes.append((centre.x - half_w, centre.y - half_h, centre.x + half_w, centre.y + half_h))
        scores.append(hypothesis.score)
        if hypothesis.class_id not in names:
            names.append(hypothesis.class_id)
        ids.append(names.index(hypothesis.class_id))
    xyxy = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return Detections(
        xyxy, np.array(scores, dtype=np.float32), np.array(ids, dtype=np.int64)
    ), names


def _spin(listener: _Listener, processes: list[subprocess.Popen], seconds: float, until) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not until():
        listener.executor.spin_once(timeout_sec=0.1)
        for process in processes:
            if process.poll() is not None:
                raise RuntimeError(
                    f"{' '.join(process.args[1:3])} ended with exit code {process.returncode}"
                )
