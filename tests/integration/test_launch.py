"""The launch files with the real launch_ros, where there is one."""

import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tiny_model import write_bright_cell_model

pytest.importorskip("rclpy", reason="ROS 2 is not here")
pytest.importorskip("launch_ros", reason="launch_ros is not here (it is not among the wheels)")

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

try:
    LAUNCH = Path(get_package_share_directory("drone_kd")) / "launch"
except PackageNotFoundError:
    pytest.skip("drone_kd is not built with colcon and sourced", allow_module_level=True)

import rclpy
from launch import LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import (
    PythonLaunchDescriptionSource,
    get_launch_description_from_python_launch_file,
)
from vision_msgs.msg import Detection2DArray


def fly(file, arguments):
    source = PythonLaunchDescriptionSource(str(LAUNCH / file))
    os.setpgrp()
    service = LaunchService()
    service.include_launch_description(
        IncludeLaunchDescription(source, launch_arguments=arguments.items())
    )
    service.run()


def test_arguments():
    names = {}
    for file in ("fly.launch.py", "replay.launch.py", "sim.launch.py"):
        description = get_launch_description_from_python_launch_file(str(LAUNCH / file))
        names[file] = {a.name for a in description.get_launch_arguments()}
    assert names["fly.launch.py"] == {
        *("model", "image", "namespace", "params_file", "use_sim_time")
    }
    assert {"source", "rate"} <= names["replay.launch.py"]
    assert names["sim.launch.py"] == {
        *("world", "headless", "camera", "output", "shapes", "bridge", "boxes", "label_names")
    }


def run_launch(file, *arguments):
    code = (
        "import sys; from test_launch import fly; "
        "fly(sys.argv[1], dict(a.split(':=') for a in sys.argv[2:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, file, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=40,
        cwd=Path(__file__).resolve().parent,
    )
    return done.stdout


def has(package):
    try:
        get_package_share_directory(package)
    except PackageNotFoundError:
        return False
    return True


@pytest.mark.skipif(has("ros_gz_sim"), reason="ros_gz_sim is here")
def test_a_missing_gazebo_is_one_line_with_what_to_install(ros_domain_id):
    output = run_launch("sim.launch.py")
    (line,) = [line for line in output.splitlines() if "ERROR" in line]
    assert "expected the package ros_gz_sim, found none: apt install ros-" in line
    assert "Traceback" not in output


@pytest.mark.skipif(not has("ros_gz_sim"), reason="ros_gz_sim is not here")
def test_a_missing_world_is_one_line(ros_domain_id):
    output = run_launch("sim.launch.py", "world:=/no/such.sdf")
    (line,) = [line for line in output.splitlines() if "ERROR" in line]
    assert "world: expected a file, found none at /no/such.sdf" in line


def test_replay_brings_detections_in_its_namespace(tmp_path, ros_domain_id):
    arguments = {
        "model": str(write_bright_cell_model(tmp_path / "model.onnx")),
        "namespace": "drone1",
        "image": "front/image",
        "rate": "10.0",
    }
    process = multiprocessing.get_context("spawn").Process(
        target=fly, args=("replay.launch.py", arguments)
    )
    process.start()
    rclpy.init()
    try:
        node = rclpy.create_node("listener")
        received = queue.Queue()
        node.create_subscription(Detection2DArray, "/drone1/detector/detections", received.put, 10)
        deadline = time.monotonic() + 40
        while received.empty() and time.monotonic() < deadline:
            rclpy.spin_once(node, timeout_sec=0.1)
        assert received.get_nowait().header.frame_id == "camera_optical_frame"
        node.destroy_node()
    finally:
        rclpy.try_shutdown()
        # As Ctrl-C in a terminal: to launch and the nodes alike, or the nodes would outlive it.
        os.killpg(process.pid, signal.SIGINT)
        process.join(timeout=20)
    assert not process.is_alive()
