"""~/record: a node writes bags, and rosbags reads them back."""

import errno
import importlib.util
import os
import threading
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import cv2
import numpy as np
import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed: pip install 'drone_kd[record]'")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.serialization import deserialize_message
from rosbags.rosbag2 import Reader, Writer
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from std_srvs.srv import SetBool
from vision_msgs.msg import Detection2DArray

from drone_kd.ros import pipeline
from drone_kd.ros.detection_messages import bgr_to_image
from drone_kd.ros.image_conversion import image_to_bgr
from drone_kd.ros.params import SettingsError
from drone_kd.ros.recording import bag_ring, recorder
from ground_station import WAIT_SECONDS

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


# Longer than a slot of the selector at 600 frames per minute.
SLOT_SECONDS = 0.11


class Clock:
    """Clock of the received frames and the recorder; it stands still unless a test moves it."""

    def __init__(self):
        self.now = perf_counter()

    def __call__(self):
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pipeline, "perf_counter", clock)
    monkeypatch.setattr(recorder, "perf_counter", clock)
    monkeypatch.setattr(recorder, "_IDLE_SECONDS", 0.02)
    return clock


@pytest.fixture
def recording(ground, model, tmp_path, clock):
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
        site.clock = clock
        return site

    return start


def record(site, on):
    return site.call(SetBool, "/detector/record", SetBool.Request(data=on))


def stop(site):
    """Switch it off, and wait for the last bag."""
    assert record(site, False).success
    report = site.detector._recorder.report
    site.wait_until(lambda: report().state != "finishing", "the bag is finished")


def see(site, image, seconds, then=SLOT_SECONDS):
    """Let the node and its recorder process a frame; then move the clock."""
    before = site.detector._recorder.report().seen
    site.send(image, seconds)
    site.receive()
    site.wait_until(lambda: site.detector._recorder.report().seen > before, "it is recorded")
    site.clock.now += then


def read(folder):
    """Return {topic: {stamp in ns: message}} of all bags of a folder."""
    found: dict[str, dict[int, object]] = {}
    for bag in sorted(folder.iterdir()):
        with Reader(bag) as reader:
            assert [path.suffix for path in bag.glob("*.mcap")] == [".mcap"]
            for connection, stamp, raw in reader.messages():
                message = deserialize_message(raw, KINDS[connection.msgtype])
                found.setdefault(connection.topic, {})[stamp] = message
    return found


def why(message):
    return message.status[0].message


def test_recording_is_off_by_default_and_can_be_switched(recording, tmp_path):
    site = recording()
    site.wait_for_detector()
    site.send(SURE)
    site.receive()
    assert not (tmp_path / "bags").exists()
    response = record(site, True)
    assert response.success and str(tmp_path / "bags") in response.message
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


def test_hard_frames_are_written_with_detections_and_reasons(recording, tmp_path):
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
        assert decoded is not None
        assert np.abs(decoded.astype(int) - frames[seconds]).mean() < 3
        found = bags["/detector/detections"][stamp]
        assert found.header == image.header == reasons[seconds].header
        (detection,) = found.detections
        score = 128 / 255 if seconds == 3 else 1.0
        assert detection.results[0].hypothesis.score == pytest.approx(score, abs=0.01)


def test_flickering_detections_are_a_reason(recording, tmp_path):
    site = recording(record_per_minute=60.0)
    site.wait_for_detector()
    assert record(site, True).success
    empty = np.zeros((64, 64, 3), np.uint8)
    for k in range(12):
        see(site, SURE if k % 2 else empty, k + 1, then=0.04)
    stop(site)
    (kept,) = read(tmp_path / "bags")["/detector/record/reasons"].values()
    assert "disagreement" in why(kept)


def test_random_frames_are_written(recording, tmp_path):
    site = recording(record_random=1.0)
    site.wait_for_detector()
    assert record(site, True).success
    for seconds in (1, 2, 3):
        see(site, SURE, seconds)
    stop(site)
    kept = read(tmp_path / "bags")["/detector/record/reasons"]
    assert [why(message) for message in kept.values()] == ["random"] * 3


def test_16_bit_image_is_written_unchanged(recording, tmp_path):
    site = recording()
    site.wait_for_detector()
    assert record(site, True).success
    thermal = Image(width=64, height=64, encoding="16UC1", step=128, header=Header(frame_id="t"))
    thermal.data = np.arange(4096, dtype=np.uint16).tobytes()
    see(site, thermal, 1)
    stop(site)
    (image,) = read(tmp_path / "bags")["/image"].values()
    assert image == thermal


def test_raw_bags_stay_within_the_budget(recording, tmp_path):
    site = recording(record_format="raw", record_budget_mb=10.0, record_random=1.0)
    site.wait_for_detector()
    assert record(site, True).success
    image = np.zeros((900, 1200, 3), np.uint8)  # 3.2 MB
    for seconds in range(1, 9):
        see(site, image + seconds, seconds)
    stop(site)
    size = sum(path.stat().st_size for path in (tmp_path / "bags").rglob("*.*"))
    kept = read(tmp_path / "bags")["/image"]
    assert size <= 10e6 and list(kept) == [k * 10**9 for k in range(9 - len(kept), 9)]
    assert len(kept) >= 2
    assert all((image_to_bgr(image) == stamp // 10**9).all() for stamp, image in kept.items())


@pytest.mark.parametrize(
    ("record_format", "shape", "says"),
    [
        ("jpeg", (8, 70_000), "JPEG: expected an image of up to 65500 pixels a side"),
        ("raw", (2500, 1400), "expected frames that fit into the budget of 10 MB"),
    ],
)
def test_frame_that_cannot_be_written_does_not_end_the_recording(
    recording, tmp_path, record_format, shape, says
):
    site = recording(record_format=record_format, record_budget_mb=10.0, record_random=1.0)
    site.wait_for_detector()
    assert record(site, True).success
    see(site, np.zeros((*shape, 3), np.uint8), 1)
    # No frame comes in: the idle recorder writes it.
    assert says in site.wait_for_log("Recording a frame failed")
    assert site.detector._recorder.report().state == "on"
    see(site, SURE, 2)
    stop(site)
    (images,) = (found for topic, found in read(tmp_path / "bags").items() if "image" in topic)
    assert list(images) == [2 * 10**9]


def test_several_cameras_with_compressed_images(recording, tmp_path):
    site = recording(cameras="[front, down]", image_transport="compressed")
    assert record(site, True).success
    sent = {}
    for camera in ("front", "down"):
        detections = site.collect(Detection2DArray, f"/detector/{camera}/detections")
        topic = f"{camera}/image/compressed"
        publisher = site.node.create_publisher(CompressedImage, topic, 1)
        site.wait_for_subscriber(publisher)
        data = cv2.imencode(".jpg", SURE)[1].tobytes()
        header = Header(frame_id=camera)
        header.stamp.sec = 7
        sent[f"/{topic}"] = CompressedImage(header=header, format="jpeg", data=data)
        publisher.publish(sent[f"/{topic}"])
        detections.get(timeout=WAIT_SECONDS)
    site.wait_until(lambda: site.detector._recorder.report().seen == 2, "both are recorded")
    stop(site)
    bags = read(tmp_path / "bags")
    for topic, message in sent.items():
        assert bags[topic] == {7 * 10**9: message}, "byte for byte as it came"
    for camera in ("front", "down"):
        (found,) = bags[f"/detector/{camera}/detections"].values()
        assert found.header.frame_id == camera and len(found.detections) == 1
        (reason,) = bags[f"/detector/{camera}/record/reasons"].values()
        assert reason.status[0].name == camera


def wait_for_status(site, messages, condition, what):
    """Return the recorder's first status that meets a condition."""

    def recorder_status(message):
        (status,) = (s for s in message.status if s.name == "/detector: record")
        return status

    found = site.receive_until(
        messages, lambda m: len(m.status) == 3 and condition(recorder_status(m)), what
    )
    return recorder_status(found)


def test_diagnostics_report_the_recorder(recording, tmp_path):
    site = recording()
    site.wait_for_detector()
    received = [site.collect(DiagnosticArray, t) for t in ("/diagnostics", "/detector/stats")]
    assert all(len(messages.get(timeout=WAIT_SECONDS).status) == 2 for messages in received)
    assert record(site, True).success
    see(site, SURE, 1)
    see(site, UNSURE, 2)
    site.wait_until(lambda: site.detector._recorder.report().kept == 2, "both are written")
    for messages in received:
        status = wait_for_status(
            site,
            messages,
            lambda s: KeyValue(key="frames kept", value="2") in s.values,
            "both frames are reported",
        )
        assert (status.level, status.message) == (DiagnosticStatus.OK, "recording on")
        values = {pair.key: pair.value for pair in status.values}
        assert values["folder"] == str(tmp_path / "bags")
        assert (values["frames looked at"], values["frames kept"]) == ("2", "2")
        assert (values["kept for novelty"], values["kept for uncertainty"]) == ("1", "1")
        assert (values["kept for random"], values["frames dropped"]) == ("0", "0")
        assert float(values["written (MB)"]) >= 0
    stop(site)
    wait_for_status(site, received[0], lambda s: s.message == "recording off", "it is off")


def test_full_disk_stops_recording_but_not_detection(recording, tmp_path, monkeypatch):
    """ENOSPC is raised where rosbags writes, in place of a really full disk."""
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
        see(site, UNSURE, 2)
        line = site.wait_for_log("Recording stopped")
    assert "WARN" in line and "No space left on device" in line
    status = wait_for_status(
        site, messages, lambda s: s.level == DiagnosticStatus.WARN, "the problem is reported"
    )
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


def test_frame_that_cannot_be_measured_costs_only_itself(recording, tmp_path, monkeypatch):
    site = recording()
    site.wait_for_detector()
    assert record(site, True).success
    with monkeypatch.context() as patch:
        patch.setattr(recorder.Selector, "see", lambda *_: 1 / 0)
        site.send(SURE, 1)
        site.receive()
        failures = site.detector.failures.report
        site.wait_until(lambda: failures().count == 1, "it is counted")
    assert failures().last == "Recording a frame failed: ZeroDivisionError: division by zero"
    see(site, SURE, 2)
    stop(site)
    assert list(read(tmp_path / "bags")["/image/compressed"]) == [2 * 10**9]


def test_waiting_frames_are_freed_when_recording_stops(recording, monkeypatch):
    site = recording()
    site.wait_for_detector()
    gate = threading.Event()

    def fail(*_):
        gate.wait(2 * WAIT_SECONDS)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bag_ring.BagRing, "write", fail)
    assert record(site, True).success
    recording_now = site.detector._recorder
    for seconds in range(1, 5):
        site.send(SURE, seconds)
        assert site.receive().header.stamp.sec == seconds
        site.clock.now += SLOT_SECONDS
    site.wait_until(recording_now._queue.qsize, "a frame waits")
    gate.set()
    site.wait_until(lambda: recording_now.report().state == "stopped", "it has stopped")
    assert recording_now._queue.empty()


def test_slow_disk_drops_frames_of_the_recording_only(recording, monkeypatch):
    site = recording()
    site.wait_for_detector()
    messages = site.collect(DiagnosticArray, "/diagnostics")
    gate, writes = threading.Event(), bag_ring.BagRing.write
    monkeypatch.setattr(
        bag_ring.BagRing, "write", lambda *a: gate.wait(2 * WAIT_SECONDS) and writes(*a)
    )
    assert record(site, True).success
    for seconds in range(1, 30):
        site.send(SURE, seconds)
        assert site.receive().header.stamp.sec == seconds
        site.clock.now += SLOT_SECONDS
    line = site.wait_for_log("Recording cannot keep up")
    assert "WARN" in line
    status = wait_for_status(
        site, messages, lambda s: s.level == DiagnosticStatus.WARN, "the problem is reported"
    )
    assert "frames were skipped" in status.message
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


def test_impossible_recording_is_rejected_with_the_reason(recording, tmp_path, monkeypatch):
    (tmp_path / "bags").write_text("a file")
    site = recording()
    response = record(site, True)
    assert not response.success
    assert "record_directory: expected a folder that can be written" in response.message
    (tmp_path / "bags").unlink()
    with monkeypatch.context() as patch:  # rosbags is here; this is what its absence looks like
        patch.setattr(importlib.util, "find_spec", lambda name, *_: None)
        response = record(site, True)
    assert (
        not response.success
        and "recording needs rosbags, which is not installed: pip" in response.message
    )
    assert "\n" not in response.message
    assert record(site, False).success


def test_camera_without_stamps_is_recorded_at_the_current_time(recording, tmp_path):
    site = recording()
    site.wait_for_detector()
    assert record(site, True).success
    see(site, bgr_to_image(SURE, Header(frame_id="camera")), 0)
    stop(site)
    (stamp,) = read(tmp_path / "bags")["/image/compressed"]
    assert stamp > 1e18


def test_bags_are_private_unless_asked_otherwise(recording, tmp_path):
    site = recording()
    site.wait_for_detector()
    assert record(site, True).success
    see(site, SURE, 1)
    stop(site)
    paths = [tmp_path / "bags", *(tmp_path / "bags").rglob("*")]
    assert len(paths) == 4
    assert {path.stat().st_mode & 0o077 for path in paths} == {0}


def prepare(folder, mode=0o700, private=True):
    folder.mkdir()
    folder.chmod(mode)
    return recorder._prepare(folder, private)[1]


@pytest.mark.parametrize(
    ("mode", "private", "warns"),
    [
        (0o700, True, False),
        (0o755, True, False),
        (0o1777, True, False),  # like /tmp: others cannot rename what is not theirs
        (0o777, True, True),
        (0o770, True, True),
        (0o777, False, False),
    ],
)
def test_folder_that_others_can_write_is_a_warning(tmp_path, mode, private, warns):
    warning = prepare(tmp_path / "bags", mode, private)
    assert ("can replace bags" in warning and f"{mode:04o}" in warning) == warns
    assert not list((tmp_path / "bags").iterdir())


def test_folder_of_another_user_is_refused_for_private_bags(tmp_path, monkeypatch):
    folder = tmp_path / "bags"
    folder.mkdir()
    real = folder.stat()
    foreign = os.stat_result((*real[:4], os.geteuid() + 1, *real[5:10]))
    monkeypatch.setattr(recorder, "_owner_of_new_files", lambda folder: os.geteuid())
    monkeypatch.setattr(os, "fstat", lambda descriptor: foreign)
    with pytest.raises(PermissionError, match=r"it belongs to user .* record_private: false"):
        recorder._prepare(folder, private=True)
    recorder._prepare(folder, private=False)


@pytest.mark.parametrize("kind", ["link to nothing", "pipe", "file", "loop"])
def test_other_kinds_of_folders_are_refused(tmp_path, kind):
    folder = tmp_path / "bags"
    if kind == "pipe":
        os.mkfifo(folder)
    elif kind == "file":
        folder.touch()
    else:
        folder.symlink_to(folder if kind == "loop" else tmp_path / "nothing")
    with pytest.raises(OSError, match="bags"):
        recorder._prepare(folder, private=True)
    assert not (tmp_path / "nothing").exists()


def test_node_of_a_user_without_a_home_flies_and_says_what_recording_needs(recording, monkeypatch):
    def no_home(path):
        if str(path).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return path

    monkeypatch.setattr(Path, "expanduser", no_home)
    site = recording(record_directory="~/.ros/drone_kd")
    site.wait_for_detector()
    response = record(site, True)
    assert not response.success
    assert "without a home folder" in response.message and "set HOME" in response.message
    with pytest.raises(SettingsError, match=r"record_directory: .*~nosuchuser/x; set HOME"):
        replace(site.detector._settings, record_directory="~nosuchuser/x")
