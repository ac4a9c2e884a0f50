"""Launch files: the real ones, in processes, with simulated Gazebo.

They run under the real `launch_ros` where it is installed, and under a simulation of it otherwise
(tests/helpers/simulated_launch.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")
pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not installed")

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import GetParameters
from rclpy.parameter import parameter_value_to_python
from vision_msgs.msg import Detection2DArray

from drone_kd.dds import remedy
from ground_station import WAIT_SECONDS, Ground

OPTIONAL = {"autostart", "use_sim_time"}
ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    "detector": "drone_kd.ros.detector",
    "camera": "drone_kd.simulation.camera_node",
    "scorer": "drone_kd.simulation.scorer_node",
    "gazebo_truth": "drone_kd.simulation.gazebo_truth_node",
}
# Waits for Ctrl-C after it has noted how it was started.
SIMULATED_PROGRAM = """#!{python}
import json, os, pathlib, signal, sys
signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
pathlib.Path({note!r} + ".tmp").write_text(json.dumps(sys.argv[1:]))
os.replace({note!r} + ".tmp", {note!r})
signal.pause()
"""
SIMULATED_GZ_LAUNCH = """
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

def generate_launch_description():
    return LaunchDescription([
        DeclareLaunchArgument("gz_args"),
        DeclareLaunchArgument("on_exit_shutdown"),
        Node(package="ros_gz_sim", executable="gz", name="gz",
             arguments=[LaunchConfiguration("gz_args")]),
    ])
"""
INCLUDES_FLY = """
from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import Node

def generate_launch_description():
    return LaunchDescription([
        IncludeLaunchDescription(PythonLaunchDescriptionSource({fly!r})),
        Node(package="other", executable="program", name="other"),
    ])
"""


def bright_cell() -> np.ndarray:
    """Return an image of 64x64 (BGR) with the one object that the tiny model detects."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[8:16, 8:16] = 255
    return image


def has(package: str) -> bool:
    try:
        get_package_share_directory(package)
    except (PackageNotFoundError, OSError):  # OSError: no ROS environment is sourced
        return False
    return True


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def register(prefix: Path, package: str) -> Path:
    """Add a package to an ament prefix; return its share folder."""
    marker = prefix / "share" / "ament_index" / "resource_index" / "packages" / package
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    share = prefix / "share" / package
    share.mkdir()
    return share


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ament prefix with this checkout, unless drone_kd is installed in another one."""
    prefix = tmp_path / "prefix"
    prefix.mkdir()
    if not has("drone_kd"):
        share = register(prefix, "drone_kd")
        for folder in ("launch", "config", "worlds"):
            (share / folder).symlink_to(ROOT / folder)
        for executable, module in MODULES.items():
            write_program(
                prefix / "lib" / "drone_kd" / executable,
                f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n',
            )
    others = os.environ.get("AMENT_PREFIX_PATH", "")
    monkeypatch.setenv("AMENT_PREFIX_PATH", os.pathsep.join(filter(None, (str(prefix), others))))
    return prefix


def simulate_gazebo(prefix: Path) -> dict[str, Path]:
    """Add a simulated Gazebo and bridge; return where each notes its arguments."""
    notes = {}
    for package, executable in (("ros_gz_sim", "gz"), ("ros_gz_bridge", "parameter_bridge")):
        register(prefix, package)
        notes[executable] = prefix / f"{executable}.json"
        text = SIMULATED_PROGRAM.format(python=sys.executable, note=str(notes[executable]))
        write_program(prefix / "lib" / package / executable, text)
    (prefix / "share" / "ros_gz_sim" / "launch").mkdir()
    launch_file = prefix / "share" / "ros_gz_sim" / "launch" / "gz_sim.launch.py"
    launch_file.write_text(SIMULATED_GZ_LAUNCH)
    return notes


def start(*arguments: str) -> subprocess.Popen[str]:
    """Run tests/helpers/ros2_launch.py; the name of a launch file becomes its path."""
    launch = Path(get_package_share_directory("drone_kd")) / "launch"
    command = [str(launch / a) if a.endswith(".launch.py") else a for a in arguments]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "helpers" / "ros2_launch.py"), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def launched(prefix: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Launch a file, and end it as Ctrl-C in a terminal does: the signal reaches every process."""
    processes = []

    def launch(*arguments: str) -> subprocess.Popen[str]:
        processes.append(start(*arguments))
        return processes[-1]

    yield launch
    for process in processes:
        os.killpg(process.pid, signal.SIGINT)
        try:
            output, _ = process.communicate(timeout=WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert process.returncode == 0, output
        assert "Traceback" not in output


def parameter(site: Ground, node: str, name: str) -> Any:
    response = site.call(
        GetParameters, f"{node}/get_parameters", GetParameters.Request(names=[name])
    )
    return parameter_value_to_python(response.values[0])


def session_processes(session: int, argument: str) -> list[int]:
    """Return the ids of the processes of a session that have a command line argument."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            arguments = (folder / "cmdline").read_text().split("\0")
            if os.getsid(int(folder.name)) == session and argument in arguments:
                found.append(int(folder.name))
    return found


def error_lines(*arguments: str, file: str = "sim.launch.py") -> list[str]:
    """Launch a file, which fails; return its error lines."""
    process = start(file, *arguments)
    output, _ = process.communicate(timeout=WAIT_SECONDS)
    assert "Traceback" not in output
    return [line for line in output.splitlines() if "ERROR" in line]


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (
            "fly.launch.py",
            {
                *("model", "camera", "image", "image_transport", "namespace", "node_name"),
                *("params_file", "log_level", "use_respawn", *OPTIONAL),
            },
        ),
        ("replay.launch.py", {"source", "rate"}),
        (
            "sim.launch.py",
            {"world", "headless", "camera", "output", "shapes", "bridge", "boxes", "label_names"},
        ),
    ],
)
def test_launch_arguments(prefix: Path, file: str, expected: set[str]) -> None:
    process = start("--arguments", file)
    output, _ = process.communicate(timeout=WAIT_SECONDS)
    assert set(output.split()) == expected


@pytest.mark.slow
def test_fly_detects_on_the_image_topic(
    ground: Callable[..., Ground], launched: Callable[..., subprocess.Popen[str]], model: Path
) -> None:
    site = ground()
    launched("fly.launch.py", f"model:={model}", "image:=/image")
    image = bright_cell()
    assert len(site.exchange(image).detections) == 1
    assert parameter(site, "/detector", "use_sim_time") is False


@pytest.mark.slow
def test_fly_reads_a_camera_in_the_process_of_the_detector(
    ground: Callable[..., Ground],
    launched: Callable[..., subprocess.Popen[str]],
    model: Path,
    tmp_path: Path,
) -> None:
    site = ground()
    image = bright_cell()
    writer = cv2.VideoWriter(
        str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 64)
    )
    for _ in range(3):
        writer.write(image)
    writer.release()
    launched("fly.launch.py", f"model:={model}", f"camera:={tmp_path / 'a.avi'}")
    assert len(site.receive().detections) == 1


@pytest.mark.slow
def test_fly_takes_the_parameter_file_and_simulated_time(
    ground: Callable[..., Ground],
    launched: Callable[..., subprocess.Popen[str]],
    model: Path,
    tmp_path: Path,
) -> None:
    site = ground()
    file = tmp_path / "my.yaml"
    file.write_text(f"/**:\n  ros__parameters:\n    model: {model}\n    confidence: 0.75\n")
    launched("fly.launch.py", f"params_file:={file}", "use_sim_time:=true", "namespace:=drone1")
    assert parameter(site, "/drone1/detector", "confidence") == 0.75
    assert parameter(site, "/drone1/detector", "model") == str(model)
    assert parameter(site, "/drone1/detector", "use_sim_time") is True
    state = site.call(GetState, "/drone1/detector/get_state", GetState.Request())
    assert state.current_state.label == "active"


@pytest.mark.slow
def test_fly_starts_a_detector_again_that_ended(
    ros_domain_id: int,
    launched: Callable[..., subprocess.Popen[str]],
    prefix: Path,
    tmp_path: Path,
) -> None:
    if (prefix / "lib").is_dir():  # the checkout, not an installed package
        note = tmp_path / "again"
        text = f"#!/bin/sh\n[ -e {note} ] && exec sleep 600\ntouch {note}\nexit 75\n"
        write_program(prefix / "lib" / "drone_kd" / "detector", text)
        process = launched("fly.launch.py", "use_respawn:=true")
        deadline = monotonic() + WAIT_SECONDS
        while not session_processes(process.pid, "600"):
            assert monotonic() < deadline and process.poll() is None


@pytest.mark.slow
@pytest.mark.parametrize("key", ["/**", "detector"])
@pytest.mark.parametrize(
    ("arguments", "state", "simulated"),
    [([], "unconfigured", True), (["autostart:=true", "use_sim_time:=false"], "active", False)],
)
def test_parameter_file_wins_over_defaults_and_arguments_over_the_file(
    ground: Callable[..., Ground],
    launched: Callable[..., subprocess.Popen[str]],
    model: Path,
    tmp_path: Path,
    key: str,
    arguments: list[str],
    state: str,
    simulated: bool,
) -> None:
    site = ground()
    file = tmp_path / "my.yaml"
    values = {"model": str(model), "autostart": False, "use_sim_time": True}
    file.write_text(json.dumps({key: {"ros__parameters": values}}))
    launched("fly.launch.py", f"params_file:={file}", *arguments)
    assert parameter(site, "/detector", "use_sim_time") is simulated
    assert parameter(site, "/detector", "model") == str(model)
    got = site.call(GetState, "/detector/get_state", GetState.Request())
    assert got.current_state.label == state


@pytest.mark.slow
def test_environment_of_the_detector_does_not_reach_nodes_launched_after_it(
    ground: Callable[..., Ground],
    launched: Callable[..., subprocess.Popen[str]],
    prefix: Path,
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = ground()
    name, _ = remedy()
    monkeypatch.delenv(name)
    register(prefix, "other")
    note = tmp_path / "environment.json"
    noting = SIMULATED_PROGRAM.replace("sys.argv[1:]", "dict(os.environ)")
    text = noting.format(python=sys.executable, note=str(note))
    write_program(prefix / "lib" / "other" / "program", text)
    fly = Path(get_package_share_directory("drone_kd")) / "launch" / "fly.launch.py"
    file = tmp_path / "both.launch.py"
    file.write_text(INCLUDES_FLY.format(fly=str(fly)))
    process = launched(str(file), f"model:={model}")
    site.wait_until(note.exists, "the other node is started")
    assert name not in json.loads(note.read_text())
    site.wait_for_publisher("/detector/detections")
    (detector,) = session_processes(process.pid, "__node:=detector")
    assert f"{name}=" in (Path("/proc") / str(detector) / "environ").read_text()


@pytest.mark.slow
def test_several_drones_fly_in_one_launch(
    ground: Callable[..., Ground], launched: Callable[..., subprocess.Popen[str]]
) -> None:
    site = ground()
    launched(str(ROOT / "examples" / "several_drones.launch.py"))
    for node, image in (
        ("/drone1/detector", "/drone1/camera/image_raw"),
        ("/drone2/eye", "/camera2/image_raw"),
    ):
        site.wait_until(partial(site.node.count_subscribers, image), f"{image} is subscribed")
        site.wait_until(partial(site.node.count_publishers, f"{node}/detections"), "it detects")
        state = site.call(GetState, f"{node}/get_state", GetState.Request())
        assert state.current_state.label == "active"


@pytest.mark.slow
def test_fly_takes_the_arguments_that_nav2_has(
    ground: Callable[..., Ground], launched: Callable[..., subprocess.Popen[str]]
) -> None:
    site = ground()
    process = launched(
        *("fly.launch.py", "node_name:=eye", "log_level:=error", "image_transport:=compressed"),
        "autostart:=false",
    )
    assert parameter(site, "/eye", "image_transport") == "compressed"
    assert parameter(site, "/eye", "autostart") is False
    (detector,) = session_processes(process.pid, "__node:=eye")
    arguments = (Path("/proc") / str(detector) / "cmdline").read_text().split("\0")
    assert arguments[arguments.index("--log-level") + 1] == "error"


@pytest.mark.slow
def test_replay_brings_detections_in_its_namespace(
    ground: Callable[..., Ground], launched: Callable[..., subprocess.Popen[str]], model: Path
) -> None:
    site = ground()
    launched(
        "replay.launch.py",
        f"model:={model}",
        "namespace:=drone1",
        "image:=front/image",
        "rate:=10.0",
    )
    detections = site.collect(Detection2DArray, "/drone1/detector/detections")
    assert detections.get(timeout=WAIT_SECONDS).header.frame_id == "camera_optical_frame"
    assert site.node.count_publishers("/drone1/front/camera_info") == 1


@pytest.mark.slow
@pytest.mark.skipif(has("ros_gz_sim"), reason="Gazebo is installed: the simulated one is not used")
@pytest.mark.parametrize("boxes", ["", "/boxes"])
def test_sim_starts_gazebo_bridge_detector_scorer_and_truth(
    ground: Callable[..., Ground],
    launched: Callable[..., subprocess.Popen[str]],
    prefix: Path,
    tmp_path: Path,
    boxes: str,
) -> None:
    notes = simulate_gazebo(prefix)
    site = ground()
    arguments = ["headless:=true", "camera:=down", f"output:={tmp_path / 'record'}"]
    process = launched("sim.launch.py", *arguments, *([f"boxes:={boxes}"] if boxes else []))

    site.wait_until(notes["gz"].exists, "Gazebo is started")
    site.wait_until(notes["parameter_bridge"].exists, "the bridge is started")
    (gz_arguments, *_) = json.loads(notes["gz"].read_text())
    assert gz_arguments.startswith("-r -s --headless-rendering /")
    assert gz_arguments.endswith("worlds/aerial_traffic.sdf")

    assert parameter(site, "/scorer", "output") == str(tmp_path / "record")
    assert parameter(site, "/scorer", "use_sim_time") is True
    assert parameter(site, "/detector", "use_sim_time") is True
    truth = boxes or "/gazebo_truth/ground_truth"
    for topic in ("/drone/down/image", truth, "/detector/detections"):
        site.wait_until(partial(site.node.count_subscribers, topic), f"{topic} is subscribed")
    if not boxes:  # a signal while Python starts would end in a traceback
        topic = "/gazebo_truth/ground_truth"
        site.wait_until(partial(site.node.count_publishers, topic), f"{topic} is published")
    # All are started by now: projected truth, too, unless Gazebo's boxes replace it.
    assert bool(session_processes(process.pid, "__node:=gazebo_truth")) == (not boxes)


@pytest.mark.skipif(has("ros_gz_sim"), reason="Gazebo is installed")
def test_missing_gazebo_is_one_line_with_what_to_install(ros_domain_id: int, prefix: Path) -> None:
    (line,) = error_lines()
    assert "expected the package ros_gz_sim, found none: apt install ros-" in line


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("world:=/no/such.sdf", "world: expected a file, found none at /no/such.sdf"),
        ("bridge:=/no/such.yaml", "bridge: expected a file, found none at /no/such.yaml"),
    ],
)
def test_wrong_argument_of_sim_is_one_line(
    ros_domain_id: int, prefix: Path, argument: str, expected: str
) -> None:
    if not has("ros_gz_sim"):
        simulate_gazebo(prefix)
    (line,) = error_lines(argument)
    assert expected in line


def test_unknown_camera_of_sim_is_rejected(ros_domain_id: int, prefix: Path) -> None:
    line, *_ = error_lines("camera:=left")
    assert "left" in line


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("params_file:=/nope/typo.yaml", "params_file: expected a file, found none at"),
        ("use_respawn:=yes", "use_respawn: expected true or false, got yes"),
        (
            "log_level:=loud",
            "log_level: expected debug or info or warn or error or fatal, got loud",
        ),
    ],
)
@pytest.mark.usefixtures("prefix")
def test_fly_refuses_an_argument_that_would_have_no_effect(argument: str, says: str) -> None:
    (line,) = [line for line in error_lines(argument, file="fly.launch.py") if says in line]
    assert line
