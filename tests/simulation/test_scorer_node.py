import json
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not here")
pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not here")

from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header, String
from vision_msgs.msg import (
    Detection2D,
    Detection2DArray,
    LabelInfo,
    ObjectHypothesis,
    ObjectHypothesisWithPose,
    VisionClass,
)

from drone_kd.core.detections import Detections
from drone_kd.ros.detection_messages import bgr_to_image, to_detection_array
from drone_kd.simulation.scorer_node import ScorerNode
from drone_kd.simulation.scoring.flight_record import Truth, read_flight
from drone_kd.simulation.scoring.report import MISSES_FOLDER
from drone_kd.simulation.truth_messages import to_camera_info, truth_to_message

BOX = np.array([[10.5, 20, 50, 60.25]], np.float32)


@pytest.fixture
def scorer(ground, start, tmp_path):
    """A scorer process, and publishers of the topics that it subscribes to."""
    site = ground()
    topics = {
        name: site.node.create_publisher(kind, name, QoSProfile(depth=10))
        for name, kind in (
            ("ground_truth", Detection2DArray),
            ("detections", Detection2DArray),
            ("camera_info", CameraInfo),
        )
    }
    topics["image"] = site.images
    process = start("drone_kd.simulation.scorer_node", "--ros-args", "-p", f"output:={tmp_path}")
    site.wait_until(
        lambda: all(topic.get_subscription_count() for topic in topics.values()), "it listens"
    )
    return site, topics, process


def scores(site):
    received = []
    site.node.create_subscription(String, "scorer/score", lambda m: received.append(m.data), 1)
    return received


@pytest.mark.slow
def test_a_flight_is_recorded_as_it_happens(scorer, tmp_path):
    site, topics, process = scorer
    live = scores(site)
    image = np.full((90, 160, 3), 200, np.uint8)
    for second in (1, 2, 3):
        header = Header(frame_id="camera")
        header.stamp.sec = second
        # Beside the car; once before the truth is out, since topics have no order.
        found = Detections(BOX + 100, np.array([0.5], np.float32), np.array([0]))
        result = to_detection_array(found, ["car"], header)
        if second == 1:
            topics["detections"].publish(result)
            site.wait_until(lambda: any(json.loads(s)["results"] == 1 for s in live), "it came")
        topics["ground_truth"].publish(truth_to_message(Truth(BOX, ("car",), ("7",)), header))
        topics["camera_info"].publish(to_camera_info(image.shape, 160.0, header))
        if second > 1:
            topics["detections"].publish(result)
    site.wait_until(
        lambda: any(s["results"] == s["truths"] == 3 for s in map(json.loads, live)), "all came"
    )
    assert json.loads(live[-1])["recall_offline"] == 0
    # Best-effort, so more than once.
    for _ in range(3):
        topics["image"].publish(bgr_to_image(image, header))
        heard = len(live)
        site.wait_until(lambda heard=heard: len(live) > heard, "a second has passed")
    code, output = process.stop()
    assert code == 0, output
    assert "Recorded 3 ground truths, 3 frames, 3 results in " in output

    # Stamps a second apart that arrive at once are those of a clock that jumps.
    legs = read_flight(tmp_path / "flight.jsonl").legs
    truths = {stamp: truth for leg in legs for stamp, truth in leg.truths.items()}
    frames = [stamp for leg in legs for stamp in leg.frames]
    assert sorted(truths) == sorted(frames) == [10**9, 2 * 10**9, 3 * 10**9]
    assert truths[10**9].ids == ("7",) and truths[10**9].names == ("car",)
    np.testing.assert_allclose(truths[10**9].xyxy, BOX)
    (first, *_) = (p for leg in legs for p in leg.predictions)
    np.testing.assert_allclose(first.xyxy, BOX + 100)
    assert [path.name for path in (tmp_path / "misses").iterdir()] == ["3000000000.jpg"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "wanted"),
    [(["-p", "label_names:=['', car]"], ["car", "", "9", "bus"]), ([], ["1", "0", "9", "bus"])],
)
def test_labels_of_a_bounding_box_camera_have_names(ground, start, tmp_path, more, wanted):
    site = ground()
    truths = site.node.create_publisher(Detection2DArray, "ground_truth", QoSProfile(depth=10))
    process = start(
        "drone_kd.simulation.scorer_node", "--ros-args", "-p", f"output:={tmp_path}", *more
    )
    site.wait_until(truths.get_subscription_count, "the scorer subscribes")
    live = scores(site)
    boxes, names = BOX.repeat(4, axis=0), ("1", "0", "9", "bus")
    truths.publish(truth_to_message(Truth(boxes, names, ("",) * 4), Header(frame_id="camera")))
    site.wait_until(lambda: any(json.loads(s)["truths"] == 1 for s in live), "it is counted")
    code, output = process.stop()
    assert code == 0, output
    events = map(json.loads, (tmp_path / "flight.jsonl").read_text().splitlines())
    (truth,) = (event for event in events if "truth" in event)
    assert [row[0] for row in truth["boxes"]] == wanted


@pytest.mark.slow
def test_unusable_boxes_are_dropped_and_counted(scorer, tmp_path):
    site, topics, process = scorer
    live = scores(site)
    names = ("car", "9" * 5000, "\x1b]0;evil\x07\n" + "x" * 10_000)
    truth = Truth(BOX.repeat(3, axis=0), names, ("",) * 3)
    for name in ("ground_truth", "detections"):
        message = truth_to_message(truth, Header())
        for value in (float("nan"), float("inf"), 1e300, -5.0):
            (bad,) = truth_to_message(Truth(BOX, ("car",), ("",)), Header()).detections
            bad.bbox.size_x = value
            message.detections.append(bad)
        topics[name].publish(message)
    site.wait_until(
        lambda: any(s["results"] == s["truths"] == 1 for s in map(json.loads, live)), "both came"
    )
    assert json.loads(live[-1])["dropped_boxes"] == 8
    code, output = process.stop()
    assert code == 0 and "Dropped 4 boxes so far" in output
    assert "\x1b]0" not in output
    flight = read_flight(tmp_path / "flight.jsonl")
    (truth,) = flight.legs[0].truths.values()
    assert len(truth.names) == 3 and all(n.isprintable() and len(n) <= 100 for n in truth.names)
    assert flight.dropped == 8


@pytest.mark.slow
def test_classes_beyond_the_limit_are_not_recorded(scorer, tmp_path):
    site, _, process = scorer
    durable = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    labels = site.node.create_publisher(LabelInfo, "label_info", durable)
    entries = [VisionClass(class_name=f"c{k}\n", class_id=k % 65536) for k in range(4000)]
    labels.publish(LabelInfo(class_map=entries))
    record = tmp_path / "flight.jsonl"
    site.wait_until(lambda: record.read_text().count("\n") == 2, "the classes came")
    process.stop()
    (_, event) = map(json.loads, record.read_text().splitlines())
    assert event == {"classes": [f"c{k}" for k in range(3000)]}


@pytest.mark.parametrize("class_id", ["bus", "7"])
def test_class_ids_may_be_names_or_numbers_of_the_class_list(ground, tmp_path, class_id):
    site = ground(output=tmp_path)
    node = ScorerNode()
    site.executor.add_node(node)
    durable = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    labels = site.node.create_publisher(LabelInfo, "label_info", durable)
    entries = [
        VisionClass(class_name="car", class_id=0),
        VisionClass(class_name="bus", class_id=7),
    ]
    labels.publish(LabelInfo(class_map=entries))
    site.wait_until(lambda: node._numbered, "the classes came")
    found = Detection2D(results=[ObjectHypothesisWithPose()])
    found.results[0].hypothesis = ObjectHypothesis(class_id=class_id, score=0.5)
    found.bbox.size_x = found.bbox.size_y = 2.0
    topic = site.node.create_publisher(Detection2DArray, "detections", 10)
    site.wait_until(topic.get_subscription_count, "it listens")
    topic.publish(Detection2DArray(detections=[found]))
    site.wait_until(lambda: node._latest is not None, "the detections came")
    assert node._latest.names == ("bus",)
    node.stop()
    node.destroy_node()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_full_disk_is_told_and_ends_with_the_flight(ground, tmp_path):
    site = ground(output=tmp_path)
    node = ScorerNode()
    site.executor.add_node(node)
    (tmp_path / MISSES_FOLDER).write_text("no folder")
    node._record._file.close()
    node._record._file = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w", 1)
    infos = site.node.create_publisher(CameraInfo, "camera_info", 10)
    site.wait_until(infos.get_subscription_count, "it listens")
    infos.publish(CameraInfo())
    site.wait_for_log("Callback failed: OSError: [Errno 28] No space left on device")
    assert node.stop()
    assert "No space left on device" in site.wait_for_log("The record may lack lines")
    site.wait_for_log("No frames of misses")
    assert "1 messages failed" in site.wait_for_log("Recorded 0 ground truths")
    node.destroy_node()


@pytest.mark.slow
def test_killed_scorer_leaves_a_readable_record(scorer, tmp_path):
    site, topics, process = scorer
    live = scores(site)
    topics["ground_truth"].publish(truth_to_message(Truth(BOX, ("car",), ("",)), Header()))
    site.wait_until(lambda: any(json.loads(s)["truths"] == 1 for s in live), "it is counted")
    process.kill()
    assert len(read_flight(tmp_path / "flight.jsonl").legs[0].truths) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "output: expected a folder"),
        (["-p", "output:=/proc/none/x"], "output /proc/none/x: "),
        (["-p", "output:=x", "-p", "pictures:=-1"], "pictures out of range"),
    ],
)
def test_a_bad_parameter_is_one_line_and_2(
    ros_domain_id, start, tmp_path, monkeypatch, args, says
):
    monkeypatch.chdir(tmp_path)
    code, output = start("drone_kd.simulation.scorer_node", "--ros-args", *args).wait()
    assert code == 2
    assert output.startswith("scorer: error: ") and output.count("\n") == 1
    assert says in output, output


def test_without_pictures_images_are_not_subscribed(ground, start, tmp_path):
    site = ground()
    start(
        *("drone_kd.simulation.scorer_node", "--ros-args"),
        *("-p", f"output:={tmp_path}", "-p", "pictures:=0"),
    )
    site.wait_until(lambda: site.node.count_subscribers("/detections") == 1, "it subscribes")
    assert site.node.count_subscribers("/image") == 0
