"""Publisher's reliability x subscriber's setting x size of the frames, between two processes."""

import contextlib
import os
import queue
import signal
import subprocess
import sys

import numpy as np
import pytest

from tiny_model import write_bright_cell_model

pytest.importorskip("rclpy", reason="ROS 2 is not here")
pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not here")

import rclpy
from rclpy.qos import ReliabilityPolicy
from sensor_msgs.msg import CompressedImage

from drone_kd import dds
from drone_kd.ros import detector_node as node_module

RELIABLE, BEST_EFFORT = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT
SIZES = ((640, 480), (1280, 720), (1920, 1080))


def start(model, **parameters):
    args = [sys.executable, "-m", "drone_kd.ros.detector_node", "--ros-args"]
    for name, value in {"model": model, "autostart": True, **parameters}.items():
        args += ["-p", f"{name}:={str(value).lower() if isinstance(value, bool) else value}"]
    return subprocess.Popen(
        args,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=dict(os.environ),
    )


def end(process):
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=10)
    assert process.returncode == 0, output
    return output


@pytest.mark.parametrize("setting", ["auto", "reliable", "best_effort"])
def test_frames_arrive(ground, tmp_path, setting):
    site = ground()
    process = start(write_bright_cell_model(tmp_path / "model.onnx"), reliability=setting)
    stamp = 0
    try:
        for offered in (RELIABLE, BEST_EFFORT):
            site.node.destroy_publisher(site.images)
            site.offer_images(offered)
            if (setting, offered) == ("reliable", BEST_EFFORT):
                continue  # incompatible: see the log below
            for width, height in SIZES:
                stamp += 1
                image = np.zeros((height, width, 3), np.uint8)
                while site.exchange(image, seconds=stamp).header.stamp.sec != stamp:
                    pass  # of the size before
        if setting == "reliable":
            with contextlib.suppress(queue.Empty):
                while True:  # what was sent before
                    site.detections.get(timeout=0.5)
            for _ in range(10):
                site.send(np.zeros((480, 640, 3), np.uint8), seconds=9)
            with pytest.raises(queue.Empty):
                site.detections.get(timeout=1)
        output = end(process)
    finally:
        process.kill()
    incompatible = "offers an incompatible quality of service"
    assert (incompatible in output) == (setting == "reliable"), output
    if setting == "reliable":
        assert "set the parameter reliability to auto" in output


def test_why_nothing_arrives(ground, tmp_path, monkeypatch):
    monkeypatch.setattr(node_module, "REPORT_SECONDS", 0.1)
    model = write_bright_cell_model(tmp_path / "model.onnx")
    site = ground(model=model, autostart=True, silence_s=0.1, cameras="[nose]")
    site.add_detector()
    site.wait_for_log("nobody publishes it; remap it with -r nose/image:=/your/topic")
    compressed = site.node.create_publisher(CompressedImage, "/nose/image/compressed", 1)
    site.wait_for_log("but /nose/image/compressed: set image_transport to compressed")
    site.node.destroy_publisher(compressed)
    # One DDS participant has one type per topic.
    elsewhere = rclpy.Context()
    rclpy.init(context=elsewhere)
    try:
        stranger = rclpy.create_node("stranger", context=elsewhere)
        stranger.create_publisher(CompressedImage, "/nose/image", 1)
        site.wait_for_log("sends sensor_msgs/msg/CompressedImage, expected sensor_msgs/msg/Image")
        stranger.destroy_node()
    finally:
        rclpy.shutdown(context=elsewhere)


def test_the_default_transport_is_named_when_nothing_arrives(ground, tmp_path, monkeypatch):
    """Large best-effort frames over the default shared memory of Fast DDS."""
    from rclpy.utilities import get_rmw_implementation_identifier

    site = ground()
    if "fastrtps" not in get_rmw_implementation_identifier():
        pytest.skip("the middleware is not Fast DDS")
    name, value = dds.remedy()
    monkeypatch.delenv(name)
    process = start(write_bright_cell_model(tmp_path / "model.onnx"), silence_s=0.5)
    try:
        site.wait_until(lambda: site.images.get_subscription_count() > 0, "it listens")
        for line in process.stdout:
            if f"set {name}={value} for both" in line:
                break
        else:
            pytest.fail("the likely cause was not named")
        end(process)
    finally:
        process.kill()
