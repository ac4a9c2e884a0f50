"""Several cameras in one node: topics, equal shares, isolation, batches."""

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray

from drone_kd.ros.detection_messages import bgr_to_image
from drone_kd.ros.drop_reasons import FAILED, SUPERSEDED, UNDECODABLE
from ground_station import WAIT_SECONDS
from tiny_model import tiny_spec, write_bright_cell_model

CAMERAS = ("front", "down")
ONE = np.zeros((64, 64, 3), np.uint8)
ONE[8:16, 8:16] = 255


class Rig:
    """Two cameras and a detector in this process."""

    def __init__(self, site):
        self.site = site
        self.node = site.add_detector()
        self.publishers = {
            camera: site.node.create_publisher(Image, f"/{camera}/image", 10) for camera in CAMERAS
        }
        self.results = {
            camera: site.collect(Detection2DArray, f"/detector/{camera}/detections", depth=100)
            for camera in CAMERAS
        }
        for publisher in self.publishers.values():
            site.wait_for_subscriber(publisher)

    def send(self, camera, number, image=ONE):
        header = Header(frame_id=camera)
        header.stamp.sec = number
        message = image if isinstance(image, Image) else bgr_to_image(image, header)
        message.header = header
        self.publishers[camera].publish(message)

    def send_and_wait(self, camera, number, image=ONE):
        before = self.site.received(camera)
        self.send(camera, number, image)
        self.site.wait_until(lambda: self.site.received(camera) > before, "it is received")

    def receive(self, camera):
        return self.results[camera].get(timeout=WAIT_SECONDS)


def rig(ground, path):
    return Rig(ground(model=path, confidence=0.9, autostart=True, cameras="[front, down]"))


@pytest.fixture
def flying(ground, model):
    return rig(ground, model)


def test_each_camera_has_its_topics_and_its_header(flying):
    for number, camera in enumerate(CAMERAS, start=1):
        flying.send(camera, number)
        found = flying.receive(camera)
        assert (found.header.frame_id, found.header.stamp.sec) == (camera, number)
        assert len(found.detections) == 1
    assert all(results.empty() for results in flying.results.values())


def test_cameras_that_exceed_the_capacity_get_equal_shares(flying):
    site, rounds = flying.site, 12
    with site.held_inference() as held:
        for number in range(1, rounds + 1):
            for camera in ("front", "front", "down"):  # one is twice as fast as the other
                flying.send_and_wait(camera, number)
            site.wait_until(lambda n=number: held.calls == n, "an inference runs")
            held.release()
        reports = flying.node.reports()
        assert all(reports[camera].dropped[SUPERSEDED] > 0 for camera in CAMERAS)
    processed = []
    for camera in CAMERAS:
        processed.append(1)
        while flying.receive(camera).header.stamp.sec != rounds:
            processed[-1] += 1
    assert abs(processed[0] - processed[1]) <= 1


def test_failures_of_one_camera_do_not_affect_the_other(flying):
    site = flying.site
    # A slow machine must not turn the silence or the latency of a camera into its status.
    for name, value in (("silence_s", 60.0), ("latency_warn_ms", 0.0), ("latency_error_ms", 0.0)):
        site.set_parameter(name, value)
    stats = site.collect(DiagnosticArray, "/detector/stats")
    bad = Image(width=2, height=2, encoding="bgr8", step=6, data=bytes(11))
    for number in range(1, 4):
        flying.send_and_wait("front", number, bad)
        flying.send("down", number)
        assert flying.receive("down").header.stamp.sec == number
    site.wait_until(lambda: site.dropped(UNDECODABLE, "front") == 3, "all are dropped")
    assert flying.results["front"].empty()
    assert site.dropped(UNDECODABLE, "down") == 0

    def levels(message):
        return {status.name: status.level for status in message.status}

    message = site.receive_until(
        stats,
        lambda m: levels(m)["/detector: front"] == DiagnosticStatus.WARN,
        "the failures are reported",
    )
    assert levels(message)["/detector: down"] == DiagnosticStatus.OK


def test_batch_holds_frames_of_both_cameras(ground, tmp_path):
    path = write_bright_cell_model(tmp_path / "batch.onnx", tiny_spec(batch=2))
    flying = rig(ground, path)
    site, works = flying.site, flying.site.backend.infer
    batches: list[np.ndarray] = []

    def infer(batch):
        output = works(batch)
        if len(batches) == 1:
            output = output.copy()
            output[1] = np.nan  # the second image of the second batch
        batches.append(batch)
        return output

    site.backend.infer = infer
    with site.held_inference() as held:
        flying.send("front", 1)
        site.wait_until(lambda: held.calls == 1, "the first inference runs")
        flying.send_and_wait("front", 2)
        flying.send_and_wait("down", 2)
    # The camera that was served least recently, "down", comes first in the batch.
    assert flying.receive("down").header.stamp.sec == 2
    assert flying.receive("front").header.stamp.sec == 1
    site.wait_until(lambda: site.dropped(FAILED, "front") == 1, "the failure is counted")
    assert len(batches) == 2
    assert flying.results["front"].empty()


@pytest.mark.slow
def test_remapped_image_without_effect_is_a_warning(ros_domain_id, start_detector):
    process = start_detector("-r", "image:=/camera/image", cameras="[front, down]")
    line = process.wait_for_line("remapped to /camera/image, but with cameras front, down")
    assert "remap front/image" in line
    process.wait_for_line("Waiting to be configured")
    process.end()
    process = start_detector("-r", "image:=image", cameras="[front, down]")
    process.wait_for_line("Waiting to be configured")
    assert "remapped" not in process.end()


@pytest.mark.parametrize(
    "cameras",
    ["[front, front]", "['front', '']", "[front/left]", "[hintén]", "[1st]", f"[{'a' * 101}]"],
)
def test_invalid_camera_names_are_rejected(ground, cameras):
    site = ground(cameras=cameras)
    with pytest.raises(ValueError, match="cameras: expected distinct names"):
        site.add_detector()


def test_camera_has_its_own_thresholds_classes_and_tiling(ground, tmp_path):
    path = write_bright_cell_model(tmp_path / "batched.onnx", tiny_spec(batch=2))
    flying = rig(ground, path)
    dim = ONE // 2
    for camera in CAMERAS:
        flying.send_and_wait(camera, 1, dim)
        assert not flying.receive(camera).detections
    own = ["front.confidence=0.25", "down.classes=person", "down.tiling=1x2"]
    flying.site.set_parameter("camera_settings", own)
    for camera, image, count in (("front", dim, 1), ("down", dim, 0), ("down", ONE, 0)):
        flying.send_and_wait(camera, 2, image)
        assert len(flying.receive(camera).detections) == count
    settings = flying.node._settings
    assert [settings.of(camera).tiling for camera in CAMERAS] == ["off", "1x2"]


def test_cameras_with_own_settings_share_no_batch(ground, tmp_path):
    flying = rig(ground, write_bright_cell_model(tmp_path / "batched.onnx", tiny_spec(batch=2)))
    flying.site.set_parameter("camera_settings", ["down.classes=person"])
    with flying.site.held_inference() as held:
        flying.send_and_wait("front", 1)
        flying.site.wait_until(lambda: held.calls == 1, "an inference runs")
        for camera in CAMERAS:  # both wait
            flying.send_and_wait(camera, 2)
        held.open()
        assert [len(flying.receive("front").detections) for _ in range(2)] == [1, 1]
        assert not flying.receive("down").detections


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("left.confidence=0.5", "with front or down, got"),
        ("front.confidence=2", "expected CAMERA.confidence=0.4"),
        ("front.confidence=nan", "expected CAMERA.confidence=0.4"),
        ("front.iou=0.5", "expected CAMERA.confidence=0.4"),
        ("front.tiling=3", "expected CAMERA.confidence=0.4"),
        ("front.classes=lorry", "knows no class 'lorry'"),
    ],
)
def test_wrong_setting_of_a_camera_is_refused(flying, value, says):
    result = flying.site.try_parameter("camera_settings", [value])
    assert not result.successful and says in result.reason
