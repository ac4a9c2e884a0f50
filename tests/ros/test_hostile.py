"""Hostile parameters, services, messages and models against a detector in flight."""

from __future__ import annotations

import itertools
import os
import queue
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterValue
from rcl_interfaces.srv import (
    DescribeParameters,
    GetParameters,
    ListParameters,
    SetParameters,
    SetParametersAtomically,
)
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger

from drone_kd.ros.detection_messages import bgr_to_image
from ground_station import WAIT_SECONDS, Ground
from hostile_models import write_hostile_models, write_unreadable_files
from node_process import NodeProcess
from tiny_model import tiny_spec, write_bright_cell_model

ONE = np.zeros((64, 64, 3), np.uint8)
ONE[8:16, 8:16] = 255
LARGE = 5_000_000
_MEGA = 1e6
# Growth of the process that is allowed in the end.
_KEPT_MB = 5.0
_BUFFERS = 3


class Flight:
    """A detector process in flight; every frame is awaited and counted."""

    def __init__(self, site: Ground, process: NodeProcess, transport: str) -> None:
        self.site, self.process = site, process
        self.is_raw = transport == "raw"
        if self.is_raw:
            self.images = site.images
        else:
            qos = QoSProfile(depth=10)
            self.images = site.node.create_publisher(CompressedImage, "image/compressed", qos)
        self._reports = site.collect(DiagnosticArray, "/diagnostics")
        self._clients: dict[str, Any] = {}
        self._seconds = itertools.count(1000)
        self.sent = self.bad = 0
        site.wait_for_subscriber(self.images)
        # One direction may be connected before the other.
        while site.detections.empty():
            self.images.publish(self.frame(999))
            self.sent += 1
            site.wait_until(lambda: True, "a moment has passed")
            try:
                site.detections.put(site.detections.get(timeout=0.5))
            except queue.Empty:
                continue
        self._drain()

    def _drain(self) -> None:
        """Wait until all frames so far are counted, then start to count."""
        values = self.status(lambda s: 0 < int(s["image"]["frames in"]) == outcomes(s["image"]))[
            "image"
        ]
        self.first_in, self.first_out = int(values["frames in"]), int(values["frames processed"])
        self.sent = 0
        while not self.site.detections.empty():
            self.site.detections.get()

    def frame(self, seconds: int, image: np.ndarray = ONE) -> Image | CompressedImage:
        header = Header(frame_id="camera")
        header.stamp.sec = seconds
        if self.is_raw:
            return bgr_to_image(image, header)
        data = cv2.imencode(".png", image)[1].tobytes()
        return CompressedImage(header=header, format="png", data=data)

    def fly(self) -> None:
        """Send a frame and wait for its detections."""
        seconds = next(self._seconds)
        self.images.publish(self.frame(seconds))
        self.sent += 1
        found = self.site.detections.get(timeout=WAIT_SECONDS)
        assert found.header.stamp.sec == seconds, "expected this frame's detections, got others"
        assert len(found.detections) == 1
        assert not self.process.ended

    def send_bad(self, message: Image | CompressedImage) -> None:
        """Send a hostile frame, and wait until it is dropped as such."""
        self.images.publish(message)
        self.sent += 1
        self.bad += 1
        self.status(lambda s: int(s["image"]["dropped undecodable"]) == self.bad)
        self.fly()

    def call(self, kind: Any, name: str, request: Any) -> Any:
        """Call a service, and fly meanwhile."""
        if name not in self._clients:
            self._clients[name] = self.site.node.create_client(kind, name)
            self.site.wait_until(self._clients[name].service_is_ready, f"{name} is available")
        future = self._clients[name].call_async(request)
        self.site.wait_until(future.done, f"{name} responds")
        self.fly()
        return future.result()

    def set(self, *parameters: ParameterMessage) -> list[Any]:
        request = SetParameters.Request(parameters=parameters)
        return self.call(SetParameters, "/detector/set_parameters", request).results

    def status(self, condition: Any = lambda s: True) -> dict[str, dict[str, str]]:
        """Return the values of the next status that meets a condition, by name."""

        def values(message: DiagnosticArray) -> dict[str, dict[str, str]]:
            return {
                status.name.rpartition(": ")[2]: {pair.key: pair.value for pair in status.values}
                | {"level": str(status.level[0]), "message": status.message}
                for status in message.status
            }

        while not self._reports.empty():
            self._reports.get()
        message = self.site.receive_until(
            self._reports, lambda m: condition(values(m)), "the status is reported"
        )
        for status in message.status:
            texts = [status.name, status.message, *(pair.value for pair in status.values)]
            assert all(text.isprintable() and len(text) <= 500 for text in texts), texts
        return values(message)

    def memory_mb(self) -> float:
        """Return the resident memory of the detector, which returns some with two reports."""
        for _ in range(3):
            self.status()
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024 / _MEGA

    def end(self) -> None:
        """Check the counts of frames, and that the process ends as asked."""
        values = self.status(lambda s: outcomes(s["image"]) - self.first_in >= self.sent)["image"]
        assert int(values["frames in"]) - self.first_in == self.sent
        assert int(values["frames processed"]) - self.first_out == self.sent - self.bad
        output = self.process.end()
        lines = [line for line in output.splitlines() if "[rcl" not in line]
        assert all(line.isprintable() for line in lines)
        assert max(map(len, lines)) < 1200


@pytest.fixture
def fly(ground, start, tmp_path):
    """Start a detector that swaps only within its folder."""

    def run(transport="raw", **more):
        site = ground()
        folder = tmp_path / "models"
        folder.mkdir()
        model = write_bright_cell_model(folder / "model.onnx")
        parameters = {
            "model": model,
            "confidence": 0.9,
            "autostart": "true",
            "image_transport": transport,
            "record_directory": tmp_path / "bags",
            **more,
        }
        process = start(
            "detector_with_frequent_reports",
            "--ros-args",
            *(part for name, value in parameters.items() for part in ("-p", f"{name}:={value}")),
            PYTHONPATH=os.pathsep.join(sys.path),
        )
        site.wait_for_publisher("/detector/detections")
        return Flight(site, process, transport), folder

    return run


def outcomes(values: dict[str, str]) -> int:
    """Return how many frames of a camera are counted with their outcome."""
    return sum(
        int(value)
        for key, value in values.items()
        if key == "frames processed" or key.startswith("dropped ")
    )


def of_type(name: str, kind: int, **value: object) -> ParameterMessage:
    return ParameterMessage(name=name, value=ParameterValue(type=kind, **value))


def text(name: str, value: str) -> ParameterMessage:
    return Parameter(name, value=value).to_parameter_msg()


def hostile_parameters(folder: Path) -> list[ParameterMessage]:
    numbers = [float("nan"), float("inf"), float("-inf"), -1e308, 1e308]
    doubles = ["confidence", "iou", "tile_overlap", "budget_ms", "max_megapixels", "max_age"]
    doubles += ["max_rate", "silence_s", "temperature_warn_c"]
    names = ["m" * LARGE, "\x1b[2J", "a\0b", "\ud7ff\u202e", "~nosuchuser/x", "../../etc/passwd"]
    names += ["/etc/passwd", "/dev/zero", "/proc/self/mem", str(folder), "~", ".", "/", "x" * 5000]
    texts = ["model", "runtime", "tiling", "image_transport", "reliability", "record_format"]
    lists = {
        "million": ["x"] * 1_000_000,
        "empty": [""] * 20_000,
        "long": ["x" * LARGE],
        "unknown": ["lorry"],
        "escapes": ["\x1b[2J"],
    }
    return [
        *(of_type(name, 3, double_value=value) for name in doubles for value in numbers),
        *(text(name, value) for name in texts for value in names),
        *(text("model", str(path)) for path in write_unreadable_files(folder)),
        *(of_type("classes", 9, string_array_value=value) for value in lists.values()),
        *(of_type("class_confidence", 9, string_array_value=value) for value in lists.values()
          if value[0]),
        of_type("class_confidence", 9, string_array_value=["car=nan"]),
        *(of_type(name, kind) for name in ("model", "confidence", "tiling", "classes")
          for kind in (0, 5, 42, 255)),
        of_type("confidence", 4, string_value="high"),
        of_type("max_detections", 2, integer_value=2**63 - 1),
        of_type("use_sim_time", 1, bool_value=True),
        of_type("autostart", 1, bool_value=False),
        text("record_directory", "/tmp"),
        of_type("swap_timeout_s", 3, double_value=3600.0),
        of_type("record_budget_mb", 3, double_value=10.0),
        of_type("tiling", 8, double_array_value=[0.5] * 1_000_000),
        of_type("tiling", 8, double_array_value=[0.5] * 100_000),
        of_type("tiling", 7, integer_array_value=[2, 3]),
        of_type("model_directories", 9, string_array_value=["/"]),
        text("no_such_parameter", "x"),
        text("", "x"),
        text("n" * LARGE, "x"),
        text("qos_overrides./image.subscription.reliability", "best_effort"),
    ]  # fmt: skip


@pytest.mark.slow
def test_hostile_parameters_are_rejected_in_flight(fly):
    flight, folder = fly()
    hostile = hostile_parameters(folder)
    # Each buffer of the middleware keeps the size of its largest request.
    for _ in range(_BUFFERS):
        flight.set(max(hostile, key=lambda parameter: len(serialize_message(parameter))))
    flight.set(text("n" * LARGE, "x"))
    memory_mb = flight.memory_mb()
    for parameter in hostile:
        (result,) = flight.set(parameter)
        what = parameter.name[:40], parameter.value.type
        assert not result.successful, what
        assert 0 < len(result.reason) <= 300 and result.reason.isprintable(), what
    request = SetParametersAtomically.Request(
        parameters=[text("tiling", "2x2"), text("no_such_parameter", "x")]
    )
    name = "/detector/set_parameters_atomically"
    assert not flight.call(SetParametersAtomically, name, request).result.successful
    assert len(flight.set(*[text("tiling", "off")] * 5000)) == 1000  # refused as a whole
    request = GetParameters.Request(names=["confidence", "tiling", "classes", "use_sim_time"])
    values = flight.call(GetParameters, "/detector/get_parameters", request).values
    assert [values[0].double_value, values[1].string_value] == [0.9, "off"]
    assert (list(values[2].string_array_value), values[3].bool_value) == ([""], False)
    assert flight.memory_mb() - memory_mb < _KEPT_MB
    flight.end()


# Of frames in a row that are lost during a request, at 20 per second.
_LOST_FRAMES = 20


@pytest.mark.slow
@pytest.mark.parametrize(
    "parameters",
    [
        [of_type("confidence", 3, double_value=0.9)] * 1000,
        [text("tiling", "é" * 1000)] * 1000,
        [of_type("classes", 9, string_array_value=[f"{i:05d}" * 3 for i in range(10_000)])] * 100,
        [of_type("tiling", 8, double_array_value=[0.5] * 1_000_000)],
    ],
    ids=["many", "texts", "lists", "array"],
)
def test_large_request_does_not_stop_detection(fly, parameters):
    flight, _ = fly()
    numbers = itertools.count(1_000_000)
    flight.site.node.create_timer(0.05, lambda: flight.images.publish(flight.frame(next(numbers))))
    client = flight.site.node.create_client(SetParameters, "/detector/set_parameters")
    flight.site.wait_until(client.service_is_ready, "it is available")
    first = flight.site.receive().header.stamp.sec
    future = client.call_async(SetParameters.Request(parameters=parameters))
    flight.site.wait_until(future.done, "it responds")
    assert not any(result.successful for result in future.result().results)
    stamps = [first]
    last = next(numbers)
    while stamps[-1] < last:
        stamps.append(flight.site.receive().header.stamp.sec)
    gaps = [after - before for before, after in itertools.pairwise(stamps)]
    assert max(gaps) <= _LOST_FRAMES


@pytest.mark.slow
def test_hostile_service_calls_get_a_response_in_flight(fly):
    flight, _ = fly()
    state = "/detector/change_state"
    for transition in (
        Transition(id=99),
        Transition(id=255, label="\x1b[2J"),
        Transition(label="x" * LARGE),
        Transition(id=Transition.TRANSITION_CONFIGURE),
        Transition(id=Transition.TRANSITION_CLEANUP),
        Transition(id=Transition.TRANSITION_ON_ACTIVATE_ERROR)
        if hasattr(Transition, "TRANSITION_ON_ACTIVATE_ERROR")
        else Transition(id=98),
    ):
        request = ChangeState.Request(transition=transition)
        assert not flight.call(ChangeState, state, request).success
    assert not flight.call(Trigger, "/detector/rollback", Trigger.Request()).success
    for on in (True, True, False, False):
        assert flight.call(SetBool, "/detector/record", SetBool.Request(data=on)).success
        assert flight.call(SetBool, "/detector/enable", SetBool.Request(data=True)).success
    many = ["confidence"] * 100_000
    for kind, request in (
        (GetParameters, GetParameters.Request(names=many)),
        (DescribeParameters, DescribeParameters.Request(names=many)),
        (ListParameters, ListParameters.Request(prefixes=many)),
        (GetParameters, GetParameters.Request(names=["x" * LARGE, "\x1b[2J"])),
    ):
        name = "_".join(["get" if kind is GetParameters else kind.__name__[:-10].lower()])
        flight.call(kind, f"/detector/{name}_parameters", request)
    failures = flight.status()["/detector"]
    assert int(failures["failures"]) == 3 and "expected up to 1000" in failures["last failure"]
    flight.end()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"), [("max_rate", 5e-324), ("max_rate", 1e-300), ("budget_ms", 5e-324)]
)
def test_extreme_parameter_within_its_range_can_be_set_back(fly, name, value):
    flight, _ = fly()
    (result,) = flight.set(of_type(name, 3, double_value=value))
    assert result.successful, result.reason
    flight.images.publish(flight.frame(1))
    flight.sent += 1
    flight.status(lambda s: int(s["image"]["frames in"]) - flight.first_in == flight.sent)
    request = SetParameters.Request(parameters=[of_type(name, 3, double_value=0.0)])
    client = flight.site.node.create_client(SetParameters, "/detector/set_parameters")
    flight.site.wait_until(client.service_is_ready, "it is available")
    client.call_async(request)
    assert flight.site.detections.get(timeout=WAIT_SECONDS).header.stamp.sec == 1
    flight.fly()
    flight.end()


def bomb(width: int, height: int) -> bytes:
    """Return a JPEG whose header declares another size."""
    data = bytearray(cv2.imencode(".jpg", ONE)[1].tobytes())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


def hostile_messages(is_raw: bool) -> list[Image | CompressedImage]:
    header = Header(frame_id="camera")
    long_header = Header(frame_id="f" * LARGE)
    if not is_raw:
        png = cv2.imencode(".png", np.zeros((10_000, 10_000), np.uint8))[1].tobytes()
        jpeg = cv2.imencode(".jpg", ONE)[1].tobytes()
        return [
            CompressedImage(header=header, format=kind, data=data)
            for kind, data in (
                ("jpeg", b""),
                ("jpeg", b"\xff\xd8"),
                ("x" * LARGE, b"noise"),
                ("\x1b[2J\r\n", b"\x1b[2J"),
                ("jpeg", bomb(32767, 32767)),
                ("png", png),
                ("jpeg", jpeg[:-20]),
                ("jpeg", b"\xff\xd8" + b"\xff\xe0\0\2" * 2_000_000),
                ("tiff", b"II*\0" + b"\xff" * 100),
            )
        ] + [CompressedImage(header=long_header, format="jpeg", data=jpeg)]
    top = 2**32 - 1
    return [
        Image(header=header, encoding=encoding, width=width, height=height, step=step, data=data)
        for encoding, width, height, step, data in (
            ("e" * LARGE, 1, 1, 3, bytes(3)),
            ("\x1b[2J\x1b]0;owned\x07\n", 1, 1, 3, bytes(3)),
            ("", 1, 1, 3, bytes(3)),
            ("bgr8", 0, 0, 0, b""),
            ("bgr8", top, top, top, bytes(3)),
            ("bgr8", top, 1, 3, bytes(3)),
            ("bgr8", 1, top, 3, bytes(3)),
            ("bgr8", 64, 64, 191, bytes(64 * 191)),
            ("bgr8", 64, 64, 192, bytes(64 * 192 - 1)),
            ("bgr8", 64, 64, top, bytes(64 * 192)),
            ("bgr8", 64, 64, 0, bytes(64 * 192)),
            ("nv12", 3, 3, 3, bytes(100)),
            ("bayer_rggb8", 1, 1, 1, bytes(1)),
            ("mono16", 2, 2, 3, bytes(8)),
        )
    ] + [Image(header=long_header, encoding="bgr8", width=1, height=1, step=3, data=bytes(3))]


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["raw", "compressed"])
def test_hostile_messages_are_dropped_and_counted_in_flight(fly, transport):
    flight, _ = fly(transport)
    messages = hostile_messages(flight.is_raw)
    # Each buffer of the middleware keeps the size of its largest message.
    for _ in range(_BUFFERS):
        flight.send_bad(max(messages, key=lambda message: len(serialize_message(message))))
    memory_mb = flight.memory_mb()
    for message in messages:
        flight.send_bad(message)
    values = flight.status()["image"]
    assert "frame_id: expected up to 1000 characters" in values["last problem"]
    assert flight.memory_mb() - memory_mb < _KEPT_MB
    flight.end()


@pytest.mark.slow
def test_unusual_headers_are_published_as_received(fly):
    flight, _ = fly()
    low, high = -(2**31), 2**31 - 1
    for second, nanosecond, frame_id in (
        (low, 0, ""),
        (high, 2**32 - 1, "f" * 1000),
        (0, 0, "\x1b[2J\n\0"[:-1]),
        (5, 2**32 - 1, "カメラ\u202e"),
    ):
        message = flight.frame(second)
        message.header.stamp.nanosec, message.header.frame_id = nanosecond, frame_id
        flight.images.publish(message)
        flight.sent += 1
        assert flight.site.detections.get(timeout=WAIT_SECONDS).header == message.header
        # A stamp that jumps back by more than a second is a new clock.
        flight.fly()
    flight.end()


@pytest.mark.slow
def test_hostile_models_are_refused_in_flight(fly, enough_for_a_trial):
    flight, folder = fly(swap_timeout_s=2 * enough_for_a_trial)  # it flies meanwhile
    sha = flight.status()["/detector"]["model sha256"]
    good = write_bright_cell_model(folder / "good.onnx", tiny_spec(classes=("bus", "dog")))

    def swap(path: Path, line: str) -> None:
        (result,) = flight.set(text("model", str(path)))
        assert result.successful, result.reason
        while not flight.process.has_line(line, seconds=0.05):
            flight.fly()

    def swap_and_return() -> None:
        swap(good, "Swapped to model good.onnx")
        assert flight.call(Trigger, "/detector/rollback", Trigger.Request()).success

    swap_and_return()  # two models stay in memory
    memory_mb = flight.memory_mb()
    models = write_hostile_models(folder)
    for name, path in models.items():
        swap(path, f"cannot load {path}: ")
        assert flight.status()["/detector"]["model sha256"] == sha, name
    swap_and_return()
    values = flight.status()["/detector"]
    assert (values["failures"], values["model sha256"]) == (str(len(models)), sha)
    assert flight.memory_mb() - memory_mb < _KEPT_MB
    # The last one is no longer recent once a swap has succeeded.
    assert values["level"] == str(DiagnosticStatus.OK[0])
    flight.end()
