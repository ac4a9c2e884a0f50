"""Shared parts of the benchmarks: processes, a listener, figures of Linux, Markdown rows.

Roles that run as processes of their own:
python -m benchmarks.rig camera|driver|null|bare ARGUMENTS.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drone_kd.dds import carry_large_images, choose_domain, stay_on_this_machine
from drone_kd.processes import running

if TYPE_CHECKING:
    from rclpy.client import Client

FRAMES = 8

# Models and bags that the tests write are inputs of some benchmarks.
sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))


def markdown_row(cells: Iterable[object]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def markdown_head(names: Sequence[str]) -> str:
    """Return the two lines that begin a Markdown table."""
    return f"{markdown_row(names)}\n|{'---|' * len(names)}"


def isolate() -> None:
    """Give this process and its children a DDS domain, unless one is set, on this machine."""
    stay_on_this_machine()
    choose_domain()
    carry_large_images()


Process = AbstractContextManager[subprocess.Popen]


def process(*command: object, **options: object) -> Process:
    """Run a Python process, and end it with SIGINT; see `running`."""
    return running([sys.executable, *command], text=True, **options)


def camera(width: int, height: int, rate_hz: float, *topics: str) -> Process:
    """Start a process that publishes the same frames of a simulated flight again and again."""
    return process("-m", "benchmarks.rig", "camera", width, height, rate_hz, *topics or ["image"])


def driver(source: Path) -> Process:
    """Start a process that publishes what the detector's own camera would hand over."""
    return process("-m", "benchmarks.rig", "driver", source)


def flight_video(path: Path, width: int, height: int, rate_hz: float) -> Path:
    """Write the frames of a simulated flight as a video; returns its path."""
    import cv2

    codec = cv2.VideoWriter.fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(path), codec, rate_hz, (width, height))
    for frame in _flight(width, height):
        writer.write(frame)
    writer.release()
    return path


def null_node() -> Process:
    """Start a process that publishes an empty array for each image at once."""
    return process("-m", "benchmarks.rig", "null")


def detector_node(model: Path, **parameters: object) -> Process:
    """Start a process with the active detector node."""
    parameters = {"model": model, "autostart": True, **parameters}
    return process(*node_command("drone_kd.ros.detector", parameters))


def node_command(module: str, parameters: Mapping[str, object]) -> list[str]:
    """Return the arguments of Python that run a node with these parameters."""
    command = ["-m", module, "--ros-args", "--log-level", "error"]
    for name, value in parameters.items():
        command += ["-p", f"{name}:={str(value).lower() if isinstance(value, bool) else value}"]
    return command


def bare_loop(model: Path, width: int, height: int, rate_hz: float, seconds: float) -> list[float]:
    """Return ms per frame of letterbox, inference and decoding in a process without ROS.

    Frames start at `rate_hz`; 0: one after the other.
    """
    command = ["-m", "benchmarks.rig", "bare", model, width, height, rate_hz, seconds]
    with process(*command, stdout=subprocess.PIPE) as loop:
        output, _ = loop.communicate(timeout=seconds + 60)
    return json.loads(output)


class Listener:
    """Subscriber of a node's detections that measures their latency.

    `cameras` are the names of the node's cameras besides the unnamed one. What is rejected or does
    not arrive in time raises RuntimeError.
    """

    def __init__(self, cameras: Sequence[str] = ()) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from vision_msgs.msg import Detection2DArray

        rclpy.init()
        self.node = rclpy.create_node("listener")
        self._executor = rclpy.executors.SingleThreadedExecutor()
        self._executor.add_node(self.node)
        for prefix in ("", *(f"{name}/" for name in cameras)):
            topic = f"detector/{prefix}detections"
            self.node.create_subscription(Detection2DArray, topic, self._on_detections, 50)
        with contextlib.suppress(ImportError):
            from yolo_msgs.msg import DetectionArray

            self.node.create_subscription(DetectionArray, "detections", self._on_detections, 50)
        self.node.create_subscription(DiagnosticArray, "detector/stats", self._on_stats, 1)
        self.restart()

    def restart(self) -> None:
        """Discard all measurements."""
        # Per message: from the camera's stamp to its arrival, arrival (s), number of detections.
        self.latencies_ms: list[float] = []
        self.arrivals: list[float] = []
        self.found: list[int] = []
        self.stats: dict[str, dict[str, str]] = {}  # of the last ~/stats: {status: {key: value}}

    def listen(self, seconds: float, until: Callable[[], object] = lambda: False) -> None:
        """Listen for some seconds, or until a condition holds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not until():
            self._executor.spin_once(timeout_sec=0.05)

    def wait_for_first(self) -> None:
        """Listen until the first detections."""
        self.listen(60, until=lambda: self.latencies_ms)
        if not self.latencies_ms:
            raise RuntimeError("no detections within a minute")

    def set_parameter(self, name: str, value: str) -> None:
        """Set a string parameter of the detector as `ros2 param set` does."""
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter

        request = SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg()]
        )
        (result,) = self._call(SetParameters, "/detector/set_parameters", request).results
        if not result.successful:
            raise RuntimeError(f"{name} could not be set to {value}: {result.reason}")

    def record(self, on: bool) -> None:
        """Switch the detector's recording on or off."""
        from std_srvs.srv import SetBool

        response = self._call(SetBool, "/detector/record", SetBool.Request(data=on))
        if not response.success:
            raise RuntimeError(f"record {on}: {response}")

    def _call(self, kind: Any, name: str, request: Any) -> Any:
        client: Client = self.node.create_client(kind, name)
        client.wait_for_service(10)
        future = client.call_async(request)
        self.listen(10, until=future.done)
        self.node.destroy_client(client)
        if not future.done():
            raise RuntimeError(f"no response of {name} within 10 s")
        return future.result()

    def close(self) -> None:
        """Shut ROS down."""
        import rclpy

        self.node.destroy_node()
        rclpy.try_shutdown()

    def _on_detections(self, message: Any) -> None:
        stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        self.latencies_ms.append((time.time_ns() - stamp) / 1e6)
        self.arrivals.append(time.monotonic())
        self.found.append(len(message.detections))

    def _on_stats(self, message: Any) -> None:
        self.stats = {
            status.name: {pair.key: pair.value for pair in status.values}
            for status in message.status
        }


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resources(pid: int) -> tuple[float, int, int]:
    """Return a process's resident memory in MB, its threads and its open files."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, threads, files


def _flight(width: int, height: int) -> list[np.ndarray]:
    from drone_kd.simulation.scene import FlightPlan, fly

    flight = fly(FlightPlan(width=width, height=height, fps=2.0))
    return [next(flight).image for _ in range(FRAMES)]


def _camera(width: int, height: int, rate_hz: float, topics: list[str]) -> None:
    import rclpy
    from rclpy.clock import Clock, ClockType
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header

    from drone_kd.ros.detection_messages import bgr_to_image

    messages = [bgr_to_image(frame, Header(frame_id="camera")) for frame in _flight(width, height)]
    rclpy.init()
    node = rclpy.create_node("camera")
    publishers = [node.create_publisher(Image, topic, 1) for topic in topics]
    count = 0

    def publish() -> None:
        nonlocal count
        for number, publisher in enumerate(publishers):
            message = messages[(count + number) % FRAMES]
            message.header.stamp = node.get_clock().now().to_msg()
            publisher.publish(message)
        count += 1

    steady = Clock(clock_type=ClockType.STEADY_TIME)
    node.create_timer(1 / rate_hz, publish, clock=steady)
    rclpy.spin(node)


def _driver(source: str) -> None:
    import rclpy
    from rclpy.executors import ExternalShutdownException

    from drone_kd.ros.local_camera import LocalCamera

    rclpy.init()
    node = rclpy.create_node("driver")
    camera = LocalCamera(node, "image", source, lambda *_: None)
    with contextlib.suppress(ExternalShutdownException, KeyboardInterrupt):
        rclpy.spin(node)
    camera.destroy()


def _null() -> None:
    import rclpy
    from sensor_msgs.msg import Image
    from vision_msgs.msg import Detection2DArray

    rclpy.init()
    node = rclpy.create_node("null")
    publisher = node.create_publisher(Detection2DArray, "detector/detections", 1)
    node.create_subscription(
        Image, "image", lambda image: publisher.publish(Detection2DArray(header=image.header)), 1
    )
    rclpy.spin(node)


def _bare(model: str, width: int, height: int, rate_hz: float, seconds: float) -> None:
    from drone_kd.detector import load_detector

    detector, frames = load_detector(model), _flight(width, height)
    for frame in frames:
        detector(frame)
    times: list[float] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        if rate_hz:
            time.sleep(max(begin + len(times) / rate_hz - time.perf_counter(), 0))
        start = time.perf_counter()
        detector(frames[len(times) % FRAMES])
        times.append((time.perf_counter() - start) * 1e3)
    print(json.dumps(times))


def main() -> None:
    """Play one of the roles until SIGINT."""
    parser = argparse.ArgumentParser()
    roles = parser.add_subparsers(dest="role", required=True)
    camera_role, bare_role = roles.add_parser("camera"), roles.add_parser("bare")
    roles.add_parser("null")
    roles.add_parser("driver").add_argument("source")
    bare_role.add_argument("model")
    for role in (camera_role, bare_role):
        role.add_argument("width", type=int)
        role.add_argument("height", type=int)
        role.add_argument("rate_hz", type=float)
    camera_role.add_argument("topics", nargs="+")
    bare_role.add_argument("seconds", type=float)
    arguments = vars(parser.parse_args())
    run: dict[str, Callable[..., None]] = {
        "camera": _camera,
        "driver": _driver,
        "null": _null,
        "bare": _bare,
    }
    with contextlib.suppress(KeyboardInterrupt):
        run[arguments.pop("role")](**arguments)


if __name__ == "__main__":
    main()
