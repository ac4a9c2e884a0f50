"""What all tests share: ROS traffic and downloads that stay on this machine, and domain ids."""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from drone_kd.dds import carry_large_images

if TYPE_CHECKING:
    from ground_station import Ground
    from simulated_tensorrt import SimulatedTensorrt

# Set here, and not in a fixture, because rclpy and ultralytics read them when imported.
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
if os.environ.get("ROS_DISTRO") == "humble":
    # Humble knows only this older name, which newer distributions warn about.
    os.environ["ROS_LOCALHOST_ONLY"] = "1"
# Fast DDS loses large best-effort images over its default shared memory.
os.environ.pop("FASTDDS_BUILTIN_TRANSPORTS", None)
carry_large_images()
# A shell lets what it runs in the background ignore Ctrl-C, and so would what the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["YOLO_OFFLINE"] = "1"
os.environ["YOLO_AUTOINSTALL"] = "False"

# Processes that start together have neighbouring ids: 37 keeps their domains apart.
_domain_ids = itertools.count(os.getpid() * 37)


@pytest.fixture
def ros_domain_id(monkeypatch: pytest.MonkeyPatch) -> int:
    """Set a ROS_DOMAIN_ID that no other test uses, for the length of one test."""
    # From 101 on, the ports of a domain meet Linux's ephemeral ports.
    domain_id = next(_domain_ids) % 100 + 1
    monkeypatch.setenv("ROS_DOMAIN_ID", str(domain_id))
    return domain_id


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model that finds a car where a cell of 8 x 8 px is bright."""
    from tiny_model import write_bright_cell_model

    return write_bright_cell_model(tmp_path / "model.onnx")


@pytest.fixture
def simulated_tensorrt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[SimulatedTensorrt]:
    """Put a simulated TensorRT 10.3 on a simulated Jetson, with an empty engine cache.

    Other versions: parametrize it indirectly.
    """
    # Deferred: it needs ONNX Runtime and onnx, which the tests of ROS alone do not.
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
    """Start ROS with parameters: ground(model=..., autostart=True)."""
    import rclpy  # deferred: most tests need no ROS

    from ground_station import Ground

    made: list[Ground] = []

    def start(**parameters: object) -> Ground:
        args = ["--ros-args"]
        for name, value in parameters.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            args += ["-p", f"{name}:={text}"]
        rclpy.init(args=args)
        made.append(Ground(capfd))
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
