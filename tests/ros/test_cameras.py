"""Several cameras in one node."""

import threading

import numpy as np
import pytest

from tiny_model import write_bright_cell_model

pytest.importorskip("rclpy", reason="ROS 2 is not here")
pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not here")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray

from drone_kd.ros import detector_node as node_module
from drone_kd.ros.detection_messages import bgr_to_image
from drone_kd.ros.stats import FAILED, SUPERSEDED, UNDECODABLE

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
            site.wait_until(lambda p=publisher: p.get_subscription_count() == 1, "it listens")

    def send(self, camera, number, image=ONE):
        header = Header(frame_id=camera)
        header.stamp.sec = number
        message = image if isinstance(image, Image) else bgr_to_image(image, header)
        message.header = header
        self.publishers[camera].publish(message)

    def wait_for(self, condition, what):
        self.site.wait_until(lambda: condition(self.node.reports()), what)


def rig(ground, path, monkeypatch):
    monkeypatch.setattr(node_module, "REPORT_SECONDS", 0.1)
    return Rig(ground(model=path, confidence=0.9, autostart=True, cameras="[front, down]"))


@pytest.fixture
def flying(ground, tmp_path, monkeypatch):
    return rig(ground, write_bright_cell_model(tmp_path / "model.onnx"), monkeypatch)


def test_each_camera_has_its_topics_and_its_header(flying):
    for number, camera in enumerate(CAMERAS, start=1):
        flying.send(camera, number)
        found = flying.results[camera].get(timeout=10)
        assert (found.header.frame_id, found.header.stamp.sec) == (camera, number)
        assert len(found.detections) == 1
    assert all(results.empty() for results in flying.results.values())


def test_cameras_beyond_the_budget_get_equal_shares(flying):
    works, backend = flying.node._model.backend.infer, flying.node._model.backend
    backend.infer = lambda batch: threading.Event().wait(0.02) or works(batch)
    pace = threading.Event()
    for number in range(1, 51):
        flying.send("front", number)
        flying.send("front", number)  # twice as many as the other one
        flying.send("down", number)
        pace.wait(0.02)
    flying.wait_for(
        lambda reports: all(
            r.processed + r.dropped[SUPERSEDED] == r.received > 0 for r in reports.values()
        ),
        "all frames are worked on",
    )
    front, down = (flying.node.reports()[camera] for camera in CAMERAS)
    assert front.dropped[SUPERSEDED] > 0 and down.dropped[SUPERSEDED] > 0
    assert abs(front.processed - down.processed) <= 2


def test_one_cameras_failures_do_not_touch_the_other(flying):
    stats = flying.site.collect(DiagnosticArray, "/detector/stats")
    bad = Image(width=2, height=2, encoding="bgr8", step=6, data=bytes(11))
    for number in range(1, 4):
        flying.send("front", number, bad)
        flying.send("down", number)
        assert flying.results["down"].get(timeout=10).header.stamp.sec == number
    flying.wait_for(lambda reports: reports["front"].dropped[UNDECODABLE] == 3, "all are dropped")
    assert flying.results["front"].empty()
    assert flying.node.reports()["down"].dropped[UNDECODABLE] == 0

    # A camera that never spoke is stale, the other one is not.
    while not stats.empty():
        stats.get()
    levels = {status.name: status.level for status in stats.get(timeout=5).status}
    assert levels["/detector: front"] == DiagnosticStatus.WARN
    assert levels["/detector: down"] != DiagnosticStatus.STALE


def test_a_batch_holds_frames_of_both_cameras(ground, tmp_path, monkeypatch):
    from tiny_model import tiny_spec

    path = write_bright_cell_model(tmp_path / "batch.onnx", tiny_spec(batch=2))
    flying = rig(ground, path, monkeypatch)
    backend = flying.node._model.backend
    gate, works, answers = threading.Event(), backend.infer, []

    def infer(batch):
        gate.wait(10)
        output = works(batch)
        if len(answers) == 1:
            output = output.copy()
            output[1] = np.nan  # the second picture of the second batch
        answers.append(output)
        return output

    backend.infer = infer
    flying.send("front", 1)
    flying.wait_for(
        lambda reports: reports["front"].received == 1 and not flying.node._inbox._frames,
        "it runs",
    )
    flying.send("front", 2)
    flying.wait_for(lambda reports: reports["front"].received == 2, "it waits")
    flying.send("down", 2)
    flying.wait_for(lambda reports: reports["down"].received == 1, "both wait")
    gate.set()
    # The camera that was served longest ago, "down", comes first in the batch.
    assert flying.results["down"].get(timeout=10).header.stamp.sec == 2
    assert flying.results["front"].get(timeout=10).header.stamp.sec == 1
    flying.wait_for(lambda reports: reports["front"].dropped[FAILED] == 1, "it is counted")
    assert len(answers) == 2
    assert flying.results["front"].empty()


@pytest.mark.parametrize("cameras", ["[front, front]", "['front', '']", "[front/left]"])
def test_names_that_cannot_be(ground, cameras):
    site = ground(cameras=cameras)
    with pytest.raises(ValueError, match="cameras: expected distinct names"):
        site.add_detector()
