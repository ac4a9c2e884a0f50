import queue
import signal

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not here")
pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not here")

from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from drone_kd.ros.image_conversion import image_to_bgr
from node_process import WAIT_SECONDS


@pytest.fixture
def camera(start):
    """Start the camera with ROS arguments."""
    return lambda *args: start("drone_kd.simulation.camera_node", "--ros-args", *args)


@pytest.fixture
def camera_images(ground):
    """Images of the camera that reach a best-effort subscriber of depth 1."""
    return subscribe(ground(), ReliabilityPolicy.BEST_EFFORT)


def subscribe(site, reliability):
    received: queue.Queue[Image] = queue.Queue()
    qos = QoSProfile(depth=1, reliability=reliability)
    site.node.create_subscription(Image, "image", received.put, qos)
    return received


def stamp(image):
    return image.header.stamp.sec + image.header.stamp.nanosec * 1e-9


@pytest.mark.slow
def test_images_are_published_in_turn_until_a_signal(camera_images, camera, tmp_path):
    for number, size in enumerate(((48, 64), (30, 20))):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((*size, 3), 50 + number, np.uint8))
    (tmp_path / "bad.png").write_bytes(b"not an image")
    process = camera("-p", f"source:={tmp_path}", "-p", "rate:=50.0", "-p", "frame_id:=nose")
    images: list[Image] = []
    while len({image.data[0] for image in images}) < 2 or len(images) < 5:
        images.append(camera_images.get(timeout=WAIT_SECONDS))
    code, output = process.stop()
    assert code == 0, output
    assert "Image skipped: " in output and "bad.png" in output and "Traceback" not in output
    shown = {(image.height, image.width, image.data[0]) for image in images}
    assert shown == {(48, 64, 50), (30, 20, 51)}
    assert {(image.encoding, image.header.frame_id) for image in images} == {("bgr8", "nose")}
    stamps = [stamp(image) for image in images]
    assert stamps == sorted(set(stamps))


@pytest.mark.slow
def test_a_video_without_loop_ends_with_its_last_frame(ground, camera, tmp_path):
    received = subscribe(ground(), ReliabilityPolicy.RELIABLE)
    video = tmp_path / "flight.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for number in range(20):
        writer.write(np.full((48, 64, 3), 10 * number, np.uint8))
    writer.release()
    process = camera(
        *("-p", f"source:={video}", "-p", "loop:=false"),
        *("-p", "rate:=20.0", "-p", "listeners:=1"),
    )
    while image_to_bgr(received.get(timeout=WAIT_SECONDS))[0, 0, 0] < 185:
        pass
    code, output = process.wait()
    assert code == 0, output
    assert "Published 20 frames" in output


@pytest.mark.slow
def test_generated_flight(camera_images, camera):
    process = camera("-p", "width:=320", "-p", "height:=240", "-p", "seed:=3")
    first, second = (camera_images.get(timeout=WAIT_SECONDS) for _ in range(2))
    code, output = process.stop(signal.SIGTERM)
    assert code == 0, output
    assert (first.width, first.height, first.encoding) == (320, 240, "bgr8")
    assert first.data != second.data


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["-p", "source:=/no/such/folder"], "/no/such/folder: no such image, folder or video"),
        (["-p", "rate:=0.0"], "rate out of range"),
        (["-p", "source:={bad}"], "no image can be read"),
    ],
)
def test_a_bad_source_is_one_line_and_2(ros_domain_id, camera, tmp_path, args, says):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not an image")
    code, output = camera(*(arg.format(bad=bad) for arg in args)).wait()
    assert code == 2
    lines = [line for line in output.splitlines() if "Image skipped: " not in line]
    assert len(lines) == 1 and lines[0].startswith("camera: error: ") and says in lines[0]
