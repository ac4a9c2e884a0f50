"""Reliability of publisher and subscriber, frame sizes, and reasons for silence."""

import cv2
import numpy as np
import pytest
import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.utilities import get_rmw_implementation_identifier
from sensor_msgs.msg import CompressedImage, Image

from drone_kd import dds
from drone_kd.ros import pipeline

RELIABLE, BEST_EFFORT = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT
SIZES = ((640, 480), (1280, 720), (1920, 1080))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "offers"),
    [
        ("auto", (RELIABLE, BEST_EFFORT)),
        ("reliable", (RELIABLE,)),
        ("best_effort", (RELIABLE, BEST_EFFORT)),
    ],
)
def test_frames_of_any_size_arrive(ground, model, start_detector, setting, offers):
    site = ground()
    process = start_detector(model=model, autostart=True, reliability=setting)
    stamp = 0
    for offered in offers:
        site.node.destroy_publisher(site.images)
        site.offer_images(offered)
        for width, height in SIZES:
            stamp += 1
            site.exchange(np.zeros((height, width, 3), np.uint8), seconds=stamp)
    output = process.end()
    assert "offers an incompatible quality of service" not in output


def test_reliable_subscriber_rejects_a_best_effort_publisher_with_a_remedy(ground, model):
    site = ground(model=model, autostart=True, reliability="reliable")
    site.node.destroy_publisher(site.images)
    site.offer_images(BEST_EFFORT)
    site.add_detector()
    line = site.wait_for_log("offers an incompatible quality of service")
    assert "set the parameter reliability to auto" in line
    assert site.images.get_subscription_count() == 0
    site.set_parameter("reliability", "auto")
    site.exchange(np.zeros((64, 64, 3), np.uint8))


def test_quality_of_service_of_the_detections_may_be_overridden(ground, model):
    prefix = "qos_overrides./detector/detections.publisher"
    overrides = {f"{prefix}.reliability": "best_effort", f"{prefix}.depth": 5}
    site = ground(model=model, autostart=True, **overrides)
    site.add_detector()
    (found,) = site.node.get_publishers_info_by_topic("/detector/detections")
    assert found.qos_profile.reliability == BEST_EFFORT
    (times,) = site.node.get_publishers_info_by_topic("/detector/processing_time_ms")
    assert times.qos_profile.reliability == RELIABLE, "each topic has its own"


def test_transport_that_is_changed_in_flight_applies_at_once(flying):
    compressed = flying.node.create_publisher(CompressedImage, "image/compressed", 1)
    flying.set_parameter("image_transport", "compressed")
    flying.wait_for_subscriber(compressed)
    jpeg = cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
    compressed.publish(CompressedImage(format="jpeg", data=jpeg))
    assert not flying.receive().detections
    flying.wait_until(lambda: flying.images.get_subscription_count() == 0, "raw is left")


def test_subscriptions_stay_if_the_new_ones_cannot_be_made(flying, monkeypatch):
    def fail(*_):
        raise RuntimeError("no more readers")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "ImageSubscription", fail)
        result = flying.try_parameter("reliability", "best_effort")
    assert not result.successful and "no more readers" in result.reason
    assert flying.detector.get_parameter("reliability").value == "auto"
    flying.exchange(np.zeros((64, 64, 3), np.uint8))


def test_reliable_and_best_effort_publishers_are_received_at_once(ground, model):
    """With "auto" the detector subscribes as best-effort, which matches both."""
    site = ground(model=model, confidence=0.9, autostart=True)
    site.add_detector()
    reliable, best_effort = (
        site.images,
        site.node.create_publisher(Image, "image", QoSProfile(depth=10, reliability=BEST_EFFORT)),
    )

    def is_subscribed_as_best_effort():
        found = site.node.get_subscriptions_info_by_topic("/image")
        return [s.qos_profile.reliability for s in found] == [BEST_EFFORT] and all(
            publisher.get_subscription_count() == 1 for publisher in (reliable, best_effort)
        )

    site.wait_until(is_subscribed_as_best_effort, "the detector subscribes to both")
    for seconds, site.images in ((1, reliable), (2, best_effort), (3, reliable)):
        site.exchange(np.zeros((64, 64, 3), np.uint8), seconds)
    site.node.destroy_publisher(best_effort)
    site.images = reliable
    site.wait_for_detector()  # reliable again
    site.exchange(np.zeros((64, 64, 3), np.uint8), seconds=4)


def test_reason_for_silence_is_logged(ground, model):
    site = ground(model=model, autostart=True, silence_s=0.1, cameras="[nose]")
    site.add_detector()
    site.wait_for_log("it has no publisher; remap it with -r nose/image:=/your/topic")
    compressed = site.node.create_publisher(CompressedImage, "/nose/image/compressed", 1)
    site.wait_for_log("but /nose/image/compressed has: set image_transport to compressed")
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


@pytest.mark.slow
def test_default_transport_is_named_as_the_reason_for_silence(
    ground, model, start_detector, monkeypatch
):
    """Large best-effort frames are lost in the default shared memory of Fast DDS."""
    site = ground()
    if "fastrtps" not in get_rmw_implementation_identifier():
        pytest.skip("the middleware is not Fast DDS")
    name, value = dds.remedy()
    monkeypatch.delenv(name)
    process = start_detector(model=model, autostart=True, silence_s=0.5)
    site.wait_until(lambda: site.images.get_subscription_count() > 0, "it is subscribed")
    process.wait_for_line(f"set {name}={value} for both")
    process.end()
