"""Without a subscriber the node receives no images."""

from time import monotonic

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.qos import ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Float64
from std_srvs.srv import SetBool
from vision_msgs.msg import Detection2DArray

from drone_kd.ros import pipeline
from ground_station import WAIT_SECONDS

ONE = np.zeros((64, 64, 3), np.uint8)
ONE[8:16, 8:16] = 255


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Be idle after a short time."""
    monkeypatch.setattr(pipeline, "IDLE_SECONDS", 0.2)


def wait_until_idle(site):
    site.wait_until(lambda: site.images.get_subscription_count() == 0, "no images are received")


def listen(site):
    site.node.create_subscription(
        Detection2DArray, "/detector/detections", site.detections.put, 10
    )


def unlisten(site):
    (subscription,) = (s for s in site.node.subscriptions if "detections" in s.topic_name)
    site.node.destroy_subscription(subscription)


def camera_status(site, reports, condition, what):
    message = site.receive_until(
        reports, lambda m: len(m.status) > 1 and condition(m.status[1]), what
    )
    return message.status[1]


def test_images_are_received_only_while_somebody_subscribes(flying):
    flying.set_parameter("silence_s", 0.5)
    flying.exchange(ONE)
    reports = flying.collect(DiagnosticArray, "/diagnostics")
    unlisten(flying)
    wait_until_idle(flying)
    status = camera_status(flying, reports, lambda s: "idle: nobody" in s.message, "it is idle")
    assert status.level == DiagnosticStatus.OK
    values = {pair.key: pair.value for pair in status.values}
    flying.wait_until(
        lambda: flying.detector.reports()[""].silent_s > 0.5, "a camera would be silent"
    )
    began = monotonic()
    listen(flying)
    flying.wait_for_detector()
    silent_s = flying.detector.reports()[""].silent_s
    assert silent_s <= monotonic() - began, "the time without images is no silence"
    assert len(flying.exchange(ONE, seconds=2).detections) == 1
    camera_status(flying, reports, lambda s: "idle" not in s.message, "it works")
    assert int(values["frames in"]) < flying.received()


def test_debug_image_or_recorder_is_a_reason_to_receive(ground, model, tmp_path):
    pytest.importorskip("rosbags", reason="needs the extra record")
    site = ground(model=model, autostart=True, record_directory=tmp_path)
    unlisten(site)
    site.add_detector()
    wait_until_idle(site)
    assert site.call(SetBool, "/detector/record", SetBool.Request(data=True)).success
    site.wait_until(site.images.get_subscription_count, "it records")
    assert site.call(SetBool, "/detector/record", SetBool.Request(data=False)).success
    wait_until_idle(site)
    site.collect(Image, "/detector/debug/image")
    site.wait_until(site.images.get_subscription_count, "it draws")


def test_processing_times_are_a_reason_to_receive(flying):
    unlisten(flying)
    wait_until_idle(flying)
    times = flying.collect(Float64, "/detector/processing_time_ms")
    flying.wait_for_subscriber(flying.images)
    flying.send(ONE)
    assert times.get(timeout=WAIT_SECONDS).data > 0


def test_setting_of_the_subscription_waits_for_its_end(flying):
    flying.exchange(ONE)
    unlisten(flying)
    wait_until_idle(flying)
    before = flying.detector._pipeline.subscriptions[""]
    flying.set_parameter("reliability", "best_effort")
    after = flying.detector._pipeline.subscriptions[""]
    assert after is not before and not after.is_open
    listen(flying)
    flying.wait_until(lambda: after.is_open, "it receives again")
    (found,) = flying.node.get_subscriptions_info_by_topic("/image")
    assert found.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT


def test_idle_camera_is_not_awaited(flying):
    flying.set_parameter("stall_s", 0.1)
    flying.exchange(ONE)
    unlisten(flying)
    wait_until_idle(flying)
    stats = flying.detector._pipeline._stats[""]
    stats.count_received()  # whatever has no outcome
    flying.wait_until(lambda: stats.report().pending_s > 0.2, "a result would be late")
    assert flying.detector._stall_problem(flying.detector._pipeline) == ""


def test_disabled_node_receives_no_images_until_it_is_enabled(flying):
    assert flying.call(SetBool, "/detector/enable", SetBool.Request(data=False)).success
    wait_until_idle(flying)
    assert flying.call(SetBool, "/detector/enable", SetBool.Request(data=True)).success
    flying.wait_for_detector()
    assert len(flying.exchange(ONE).detections) == 1
