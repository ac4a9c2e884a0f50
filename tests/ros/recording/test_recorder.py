"""~/record: a real node over real DDS writes real bags, which rosbags reads back."""

import errno
import importlib.util
import threading

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not here")
pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not here")
pytest.importorskip("rosbags", reason="rosbags is not here: pip install 'drone_kd[record]'")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.serialization import deserialize_message
from rosbags.rosbag2 import Reader, Writer
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from std_srvs.srv import SetBool
from vision_msgs.msg import Detection2DArray

from drone_kd.ros import detector_node as node_module
from drone_kd.ros.detection_messages import bgr_to_image
from drone_kd.ros.image_conversion import image_to_bgr
from drone_kd.ros.recording import bag_ring, recorder

KINDS = {
    f"{kind.__module__.partition('.')[0]}/msg/{kind.__name__}": kind
    for kind in (Image, CompressedImage, Detection2DArray, DiagnosticArray)
}
SURE = np.zeros((64, 64, 3), np.uint8)
SURE[8:16, 8:16] = 255
UNSURE = np.zeros((64, 64, 3), np.uint8)
UNSURE[8:16, 8:16] = 128
BRIGHT = np.full((64, 64, 3), 60, np.uint8)
BRIGHT[8:16, 8:16] = 255


@pytest.fixture(autouse=True)
def frequent_reports(monkeypatch):
    monkeypatch.setattr(node_module, "REPORT_SECONDS", 0.1)


@pytest.fixture
def recording(ground, model, tmp_path):
    """Start an active detector whose bags go to tmp_path/bags: recording(record_format="raw")."""

    def start(**parameters):
        site = ground(
            model=model,
            confidence=0.3,
            autostart=True,
            **{
                "record_directory": tmp_path / "bags",
                "record_per_minute": 600.0,
                "record_random": 0.0,
                **parameters,
            },
        )
        site.add_detector()
        return site

    return start


def record(site, on):
    client = site.node.create_client(SetBool, "/detector/record")
    assert client.wait_for_service(10)
    future = client.call_async(SetBool.Request(data=on))
    site.wait_until(future.done, "the service answers")
    return future.result()


def stop(site):
    """Switch it off, and wait for the last bag."""
    assert record(site, False).success
    report = site.detector._recorder.report
    site.wait_until(lambda: report().state != "finishing", "the bag is finished")


def see(site, image, seconds):
    """Let the node, and its recorder, see a frame of its own slot."""
    before = site.detector._recorder.report().seen
    site.send(image, seconds)
    site.receive()
    site.wait_until(lambda: site.detector._recorder.report().seen > before, "it is looked at")
    site.wait_until(SLOTS.ended, "the slot has ended")


class _Slots:
    """Lets a test wait for the end of a slot of a tenth of a second."""

    def __init__(self):
        self._begun = None

    def ended(self):
        now = recorder.perf_counter()
        if self._begun is None:
            self._begun = now
        if now - self._begun < 0.11:
            return False
        self._begun = None
        return True


SLOTS = _Slots()


def read(folder):
    """Return {topic: {stamp in ns: message}} of all bags of a folder."""
    found = {}
    for bag in sorted(folder.iterdir()):
        with Reader(bag) as reader:
            assert [path.suffix for path in bag.glob("*.mcap")] == [".mcap"]
            for connection, stamp, raw in reader.messages():
                message = deserialize_message(raw, KINDS[connection.msgtype])
                found.setdefault(connection.topic, {})[stamp] = message
    return found


def why(message):
    return message.status[0].message


def test_off_by_default_and_off_again(recording, tmp_path):
    site = recording()
    site.wait_for_detector()
    site.send(SURE)
    site.receive()
    assert not (tmp_path / "bags").exists()
    answer = record(site, True)
    assert answer.success and str(tmp_path / "bags") in answer.message
    assert record(site, True).success, "it is on already"
    see(site, SURE, 2)
    stop(site)
    site.send(UNSURE, 3)
    site.receive()
    assert list(read(tmp_path / "bags")["/image/compressed"]) == [2 * 10**9]
    assert record(site, True).success
    see(site, UNSURE, 4)
    stop(site)
    assert list(read(tmp_path / "bags")["/image/compressed"]) == [2 * 10**9, 4 * 10**9]


def test_a_frame_its_detections_and_the_reason(recording, tmp_path):
    site = recording()
    site.wait_for_detector()
    assert record(site, True).success
    frames = {1: SURE, 2: SURE, 3: UNSURE, 4: SURE, 5: BRIGHT}
    for seconds, image in frames.items():
        see(site, image, seconds)
    stop(site)
    bags = read(tmp_path / "bags")
    assert set(bags) == {
        "/image/compressed",
        "/detector/detections",
        "/detector/record/reasons",
    }
    reasons = {stamp // 10**9: m for stamp, m in bags["/detector/record/reasons"].items()}
    # The first is all new; a frame like one before is left.
    assert {k: why(m) for k, m in reasons.items()} == {
        1: "novelty",
        3: "uncertainty",
        5: "novelty",
    }
    values = {pair.key: float(pair.value) for pair in reasons[3].status[0].values}
    assert values["uncertainty"] > 0.9 and values["novelty"] < 0.3
    for stamp, image in bags["/image/compressed"].items():
        seconds = stamp // 10**9
        assert image.header.stamp.sec == seconds and image.header.frame_id == "camera"
        decoded = cv2.imdecode(np.frombuffer(image.data, np.uint8), cv2.IMREAD_COLOR)
        assert np.abs(decoded.astype(int) - frames[seconds]).mean() < 3
        found = bags["/detector/detections"][stamp]
        assert found.header == image.header == reasons[seconds].header
        (detection,) = found.detections
        score = 128 / 255 if seconds == 3 else 1.0
        assert detection.results[0].hypothesis.score == pytest.approx(score, abs=0.01)


def test_frames_that_disagree_with_their_neighbours(recording, tmp_path):
    site = recording(record_per_minute=60.0)
    site.wait_for_detector()
    assert record(site, True).success
    empty = np.zeros((64, 64, 3), np.uint8)
    for k in range(12):
        site.send(SURE if k % 2 else empty, k + 1)
        site.receive()
    stop(site)
    (kept,) = read(tmp_path / "bags")["/detector/record/reasons"].values()
    assert "disagreement" in why(kept)


def test_by_chance(recording, tmp_path):
    site = recording(record_random=1.0)
    site.wait_for_detector()
    assert record(site, True).success
    for seconds in (1, 2, 3):
        see(site, SURE, seconds)
    stop(site)
    kept = read(tmp_path / "bags")["/detector/record/reasons"]
    assert [why(message) for message in kept.values()] == ["random"] * 3


def test_raw_and_what_jpeg_cannot_hold(recording, tmp_path):
    site = recording()
    site.wait_for_detector()
    assert record(site, True).success
    thermal = Image(width=64, height=64, encoding="16UC1", step=128, header=Header(frame_id="t"))
    thermal.data = np.arange(4096, dtype=np.uint16).tobytes()
    see(site, thermal, 1)
    stop(site)
    (image,) = read(tmp_path / "bags")["/image"].values()
    assert image == thermal


def test_the_budget_in_raw(recording, tmp_path):
    site = recording(record_format="raw", record_budget_mb=10.0, record_random=1.0)
    site.wait_for_detector()
    assert record(site, True).success
    picture = np.zeros((900, 1200, 3), np.uint8)  # 3.2 MB
    for seconds in range(1, 9):
        see(site, picture + seconds, seconds)
    stop(site)
    size = sum(path.stat().st_size for path in (tmp_path / "bags").rglob("*.*"))
    kept = read(tmp_path / "bags")["/image"]
    assert size <= 10e6 and list(kept) == [k * 10**9 for k in range(9 - len(kept), 9)]
    assert len(kept) >= 2
    assert all((image_to_bgr(image) == stamp // 10**9).all() for stamp, image in kept.items())


def test_several_cameras_and_compressed_ones(recording, tmp_path):
    site = recording(cameras="[front, down]", image_transport="compressed")
    assert record(site, True).success
    sent = {}
    for camera in ("front", "down"):
        detections = site.collect(Detection2DArray, f"/detector/{camera}/detections")
        topic = f"{camera}/image/compressed"
        publisher = site.node.create_publisher(CompressedImage, topic, 1)
        site.wait_until(lambda p=publisher: p.get_subscription_count() == 1, "it listens")
        data = cv2.imencode(".jpg", SURE)[1].tobytes()
        header = Header(frame_id=camera)
        header.stamp.sec = 7
        sent[f"/{topic}"] = CompressedImage(header=header, format="jpeg", data=data)
        publisher.publish(sent[f"/{topic}"])
        detections.get(timeout=10)
    site.wait_until(lambda: site.detector._recorder.report().seen == 2, "it has seen both")
    stop(site)
    bags = read(tmp_path / "bags")
    for topic, message in sent.items():
        assert bags[topic] == {7 * 10**9: message}, "byte for byte as it came"
    for camera in ("front", "down"):
        (found,) = bags[f"/detector/{camera}/detections"].values()
        assert found.header.frame_id == camera and len(found.detections) == 1
        (reason,) = bags[f"/detector/{camera}/record/reasons"].values()
        assert reason.status[0].name == camera


def status_of(messages):
    """Return the recorder's next status."""
    while True:
        for status in messages.get(timeout=5).status:
            if status.name == "/detector: record":
                return status


def test_what_it_says_of_itself(recording, tmp_path):
    site = recording()
    site.wait_for_detector()
    received = [site.collect(DiagnosticArray, t) for t in ("/diagnostics", "/detector/stats")]
    assert all(len(messages.get(timeout=5).status) == 2 for messages in received)
    assert record(site, True).success
    see(site, SURE, 1)
    see(site, UNSURE, 2)
    site.wait_until(lambda: site.detector._recorder.report().kept == 2, "both are written")
    for messages in received:
        while not messages.empty():
            messages.get()
        status = status_of(messages)
        assert (status.level, status.message) == (DiagnosticStatus.OK, "recording on")
        values = {pair.key: pair.value for pair in status.values}
        assert values["folder"] == str(tmp_path / "bags")
        assert (values["frames looked at"], values["frames kept"]) == ("2", "2")
        assert (values["kept for novelty"], values["kept for uncertainty"]) == ("1", "1")
        assert (values["kept for random"], values["frames dropped"]) == ("0", "0")
        assert float(values["written (MB)"]) >= 0
    stop(site)
    while status_of(received[0]).message != "recording off":
        pass


def test_disk_full_stops_recording_and_nothing_else(recording, tmp_path, monkeypatch):
    """ENOSPC is raised by hand where rosbags writes: no full disk can be had here."""
    site = recording()
    site.wait_for_detector()
    messages = site.collect(DiagnosticArray, "/diagnostics")
    assert record(site, True).success
    see(site, SURE, 1)
    site.wait_until(lambda: site.detector._recorder.report().kept == 1, "one is written")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "write", full)
        site.send(UNSURE, 2)
        site.receive()
        line = site.wait_for_log("recording stopped")
    assert "WARN" in line and "No space left on device" in line
    while (status := status_of(messages)).level != DiagnosticStatus.WARN:
        pass
    assert "No space left on device" in status.message
    for seconds in (3, 4):
        site.send(SURE, seconds)
        assert site.receive().header.stamp.sec == seconds
    report = site.detector._recorder.report
    site.wait_until(lambda: report().state == "stopped", "the bag is finished")
    # What was written before is whole, and recording can be switched on again.
    assert list(read(tmp_path / "bags")["/image/compressed"]) == [10**9]
    assert record(site, True).success
    see(site, UNSURE, 5)
    stop(site)
    assert list(read(tmp_path / "bags")["/image/compressed"]) == [10**9, 5 * 10**9]


def test_a_slow_disk_costs_frames_of_the_recording_only(recording, monkeypatch):
    site = recording()
    site.wait_for_detector()
    messages = site.collect(DiagnosticArray, "/diagnostics")
    gate, writes = threading.Event(), bag_ring.BagRing.write
    monkeypatch.setattr(bag_ring.BagRing, "write", lambda *a: gate.wait(20) and writes(*a))
    assert record(site, True).success
    for seconds in range(1, 30):
        site.send(SURE, seconds)
        assert site.receive().header.stamp.sec == seconds
        site.wait_until(SLOTS.ended, "a moment has passed")
    line = site.wait_for_log("recording cannot keep up")
    assert "WARN" in line
    while (status := status_of(messages)).level != DiagnosticStatus.WARN:
        pass
    assert "frames were not looked at" in status.message
    assert site.detector._recorder.report().dropped > 10
    gate.set()
    stop(site)


def test_the_end_of_the_node_finishes_the_bag(recording, tmp_path):
    site = recording()
    site.wait_for_detector()
    assert record(site, True).success
    see(site, SURE, 1)
    assert site.detector.stop()
    assert list(read(tmp_path / "bags")["/image/compressed"]) == [10**9]


def test_where_it_cannot_record_it_says_why(recording, tmp_path, monkeypatch):
    (tmp_path / "bags").write_text("a file")
    site = recording()
    answer = record(site, True)
    assert not answer.success
    assert "record_directory: expected a folder that can be written" in answer.message
    with monkeypatch.context() as patch:  # rosbags is here; this is what its absence looks like
        patch.setattr(importlib.util, "find_spec", lambda name, *_: None)
        answer = record(site, True)
    assert (
        not answer.success
        and "recording needs rosbags, which is not installed: pip" in answer.message
    )
    assert "\n" not in answer.message
    assert record(site, False).success


def test_a_camera_without_a_clock(recording, tmp_path):
    site = recording()
    site.wait_for_detector()
    assert record(site, True).success
    see(site, bgr_to_image(SURE, Header(frame_id="camera")), 0)
    stop(site)
    (stamp,) = read(tmp_path / "bags")["/image/compressed"]
    assert stamp > 1e18
