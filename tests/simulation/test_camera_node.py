import os
import queue
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not here")
pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not here")

from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from drone_kd.ros.image_conversion import image_to_bgr


def start_process(*args):
    return subprocess.Popen(
        [sys.executable, "-m", "drone_kd.simulation.camera_node", "--ros-args", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=dict(os.environ),
    )


@pytest.fixture
def camera_images(ground):
    """What the camera publishes, as a best-effort subscriber of depth 1 gets it."""
    return subscribe(ground(), ReliabilityPolicy.BEST_EFFORT)


def subscribe(site, reliability):
    received = queue.Queue()
    qos = QoSProfile(depth=1, reliability=reliability)
    site.node.create_subscription(Image, "image", received.put, qos)
    return received


def stamp(image):
    return image.header.stamp.sec + image.header.stamp.nanosec * 1e-9


def test_pictures_go_round_until_a_signal(camera_images, tmp_path):
    for number, size in enumerate(((48, 64), (30, 20))):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((*size, 3), 50 + number, np.uint8))
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    process = start_process(
        "-p", f"source:={tmp_path}", "-p", "rate:=50.0", "-p", "frame_id:=nose"
    )
    try:
        images = [camera_images.get(timeout=15) for _ in range(5)]
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert "left out" in output and "bad.png" in output and "Traceback" not in output
    pictures = {(image.height, image.width, image.data[0]) for image in images}
    assert pictures == {(48, 64, 50), (30, 20, 51)}
    assert {(image.encoding, image.header.frame_id) for image in images} == {("bgr8", "nose")}
    stamps = [stamp(image) for image in images]
    assert stamps == sorted(set(stamps))


def test_a_video_without_loop_ends_with_its_last_frame(ground, tmp_path):
    received = subscribe(ground(), ReliabilityPolicy.RELIABLE)
    video = tmp_path / "flight.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    # 5 s at 20 Hz: two processes may need 3 s, DDS's announcement period, to find each other.
    for number in range(100):
        writer.write(np.full((48, 64, 3), 2 * number, np.uint8))
    writer.release()
    process = start_process("-p", f"source:={video}", "-p", "loop:=false", "-p", "rate:=20.0")
    try:
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, output
    while image_to_bgr(received.get(timeout=5))[0, 0, 0] < 195:
        pass


def test_the_generated_flight(camera_images):
    pytest.importorskip("drone_kd.simulation.scene", reason="the generator is not here")
    process = start_process("-p", "width:=320", "-p", "height:=240", "-p", "seed:=3")
    try:
        first, second = (camera_images.get(timeout=30) for _ in range(2))
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=10)
    assert process.returncode == 0, output
    assert (first.width, first.height, first.encoding) == (320, 240, "bgr8")
    assert first.data != second.data


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["-p", "source:=/no/such/folder"], "/no/such/folder: no such picture, folder or video"),
        (["-p", "rate:=0.0"], "rate out of range"),
        (["-p", "source:={bad}"], "no picture can be read"),
    ],
)
def test_a_bad_source_is_one_line_and_2(ros_domain_id, tmp_path, args, says):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not a picture")
    process = start_process(*(arg.format(bad=bad) for arg in args))
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 2
    lines = [line for line in output.splitlines() if "left out" not in line]
    assert len(lines) == 1 and lines[0].startswith("camera: error: ") and says in lines[0]
