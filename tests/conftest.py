"""Fixtures and environment of all tests: ROS traffic stays local, nothing is downloaded."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import random
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from drone_kd.dds import carry_large_images

if TYPE_CHECKING:
    from ground_station import Ground
    from node_process import NodeProcess
    from simulated_tensorrt import SimulatedTensorrt

# Set at import, not in a fixture, because rclpy and Ultralytics read them when imported.
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
if os.environ.get("ROS_DISTRO") == "humble":
    # Humble knows only this older name; newer distributions warn about it.
    os.environ["ROS_LOCALHOST_ONLY"] = "1"
# Fast DDS loses large best-effort images over its default shared memory.
os.environ.pop("FASTDDS_BUILTIN_TRANSPORTS", None)
carry_large_images()
# A shell's background jobs ignore SIGINT, and so would the processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["YOLO_OFFLINE"] = "1"
os.environ["YOLO_AUTOINSTALL"] = "False"

# Folder of tests: modules that it requires, and where they come from. A skip in the conftest.py of
# the folder would end the whole session before pytest 8.
_REQUIRED = {
    "fuzz": (("hypothesis",), "pip install -r requirements/dev.txt"),
    "ros": (("rclpy", "vision_msgs"), "source ROS 2, or make setup"),
    "training": (("torch", "ultralytics"), "make setup"),
    "benchmarks": (("torch", "ultralytics"), "make setup"),
    "training/data/test_flight_frames.py": (("rosbags",), "pip install 'drone_kd[simulation]'"),
    "training/mining": (("rosbags",), "pip install 'drone_kd[simulation]'"),
}
_LEFT_OUT = {
    folder: f"no {' and no '.join(missing)} ({remedy})"
    for folder, (modules, remedy) in _REQUIRED.items()
    if (missing := [name for name in modules if find_spec(name) is None])
}
collect_ignore_glob = [f"{folder}{end}" for folder in _LEFT_OUT for end in ("", "/*")]

# Above 100 the ports of a domain meet Linux's ephemeral ports.
_DOMAIN_IDS = range(1, 101)
# A domain that was just used may still hold dying participants: start with a different one.
_next_domain_ids = itertools.cycle(random.sample(_DOMAIN_IDS, len(_DOMAIN_IDS)))


def pytest_report_header() -> list[str]:
    """Name the folders whose tests are left out."""
    return [f"left out: tests/{folder}: {reason}" for folder, reason in _LEFT_OUT.items()]


@pytest.fixture
def ros_domain_id(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Set a ROS_DOMAIN_ID that no other test uses now, in this or any other pytest process."""
    with socket.socket(socket.AF_UNIX) as lock:
        for domain_id in itertools.islice(_next_domain_ids, len(_DOMAIN_IDS)):
            # The kernel gives an abstract name to one socket at a time, and frees it when its
            # process ends, however it ends.
            with contextlib.suppress(OSError):
                lock.bind(f"\0drone_kd/ros_domain_id/{domain_id}")
                break
        else:
            pytest.fail("expected a free ROS domain id, all are in use by other tests")
        monkeypatch.setenv("ROS_DOMAIN_ID", str(domain_id))
        yield domain_id


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model that detects a car at each bright cell of 8 x 8 px."""
    from tiny_model import write_bright_cell_model

    return write_bright_cell_model(tmp_path / "model.onnx")


@pytest.fixture
def start() -> Iterator[Callable[..., NodeProcess]]:
    """Start a module as a process; it is killed at the end of the test."""
    from node_process import NodeProcess

    started: list[NodeProcess] = []

    def run(module: str, *arguments: str, **environment: str) -> NodeProcess:
        started.append(NodeProcess(module, *arguments, **environment))
        return started[-1]

    yield run
    for process in started:
        process.kill()


@pytest.fixture
def simulated_tensorrt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[SimulatedTensorrt]:
    """Put a simulated TensorRT 10.3 on a simulated Jetson, with an empty engine cache.

    For other versions parametrize it indirectly.
    """
    # Deferred: needs ONNX Runtime and onnx, which the pure ROS tests do not.
    from simulated_tensorrt import SimulatedGpu, SimulatedTensorrt, forget_modules

    simulation = SimulatedTensorrt(getattr(request, "param", "10.3"), SimulatedGpu())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "tensorrt", simulation.module)
    monkeypatch.setattr(ctypes, "CDLL", simulation.gpu.library)
    forget_modules()
    yield simulation
    forget_modules()


@pytest.fixture
def ground(
    ros_domain_id: int, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ground]]:
    """Start ROS with parameters: ground(model=..., autostart=True).

    `capfd` makes standard error a file, which `Ground.log` reads.
    """
    import rclpy  # deferred: most tests do not need ROS

    from ground_station import Ground

    made: list[Ground] = []

    def start(**parameters: object) -> Ground:
        args = ["--ros-args"]
        for name, value in parameters.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            args += ["-p", f"{name}:={text}"]
        rclpy.init(args=args)
        made.append(Ground())
        return made[0]

    yield start
    if made:
        made[0].close()
    rclpy.try_shutdown()


@pytest.fixture
def flying(ground: Callable[..., Ground], model: Path) -> Ground:
    """An active detector in this process."""
    site = ground(model=model, confidence=0.9, autostart=True)
    site.add_detector()
    site.wait_for_detector()
    return site
