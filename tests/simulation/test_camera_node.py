import queue
import re
import signal

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not here")
pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not here")

from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from vision_msgs.msg import Detection2DArray

from drone_kd.simulation.scene import FlightPlan, SceneFrames
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
    subscribe(ground(), ReliabilityPolicy.RELIABLE)
    video = tmp_path / "flight.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for number in range(20):
        writer.write(np.full((48, 64, 3), 10 * number, np.uint8))
    writer.release()
    process = camera(
        *("-p", f"source:={video}", "-p", "loop:=false"),
        *("-p", "rate:=20.0", "-p", "listeners:=1"),
    )
    code, output = process.wait()
    assert code == 0, output
    counts = re.search(r"Published (\d+) frames; 0 dropped on purpose, (\d+) not made", output)
    assert counts, output
    # A busy machine leaves frames out, also the last ones.
    assert 15 <= sum(map(int, counts.groups())) <= 20


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


@pytest.mark.slow
def test_a_rate_that_cannot_be_rendered_leaves_frames_out(ground, camera):
    """Each frame shows the scene at its own stamp; nothing is in slow motion."""
    site = ground()
    truths: queue.Queue[Detection2DArray] = queue.Queue()
    site.node.create_subscription(Detection2DArray, "camera/ground_truth", truths.put, 100)
    subscribe(site, ReliabilityPolicy.RELIABLE)
    plan = FlightPlan(3, 1280, 720, 240, "highway", altitude_m=50)
    process = camera(
        *("-p", "width:=1280", "-p", "height:=720", "-p", "rate:=240.0", "-p", "seed:=3"),
        *("-p", "scene:=highway", "-p", "altitude:=50.0", "-p", "listeners:=1"),
        *("-p", "seconds:=1.0"),
    )
    code, output = process.wait()
    assert code == 0 and " 0 not made in time" not in output, output
    messages = [truths.get(timeout=WAIT_SECONDS)]
    while not truths.empty():
        messages.append(truths.get())
    times_s = np.array([stamp(message) for message in messages]) - stamp(messages[0])
    assert len(times_s) > 2 and np.diff(times_s).max() > 1.5 / plan.fps
    scene = SceneFrames(plan)
    for k in (len(times_s) // 2, -1):
        boxes = [d.bbox.center.position.x for d in messages[k].detections]
        xyxy = scene.at(float(times_s[k])).xyxy
        # At 9 m/s a tenth of a second moves the scene by some 20 px.
        assert boxes == pytest.approx(xyxy[:, ::2].mean(1).tolist(), abs=1)
