"""The installed vision_msgs equal the official ones and pass over DDS unchanged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2: source one or run `make setup`")

from geometry_msgs.msg import PoseWithCovariance  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from vision_msgs import msg as vision_msgs  # noqa: E402

DEADLINE_S = 600.0  # discovery takes long on a loaded machine
pytestmark = pytest.mark.timeout(900)

EXPECTED_HASHES = {
    "BoundingBox2D": "RIHS01_008eacbb0cf8f26e83795547bed013eec3675485ef386ec056d80eaaf1c1ce2f",
    "Detection2D": "RIHS01_0d12b69df5c593b3455b7346fac8205437a7d4bcb09b9e0e0b2dde787ded38ea",
    "Detection2DArray": "RIHS01_214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968",
    "LabelInfo": "RIHS01_3d37df4015cdf660cc851c51897f2acd957e1ca6205ba0a99aebffb9406b0783",
    "ObjectHypothesis": "RIHS01_51da43cec11c01957a64d1e05a24acd18aae7745ec30b74348ad5f6d634f7f90",
    "ObjectHypothesisWithPose": (
        "RIHS01_41c12344c0396c48b81df12467c192d99b2a0eb1463c5c37194e4223251c80bc"
    ),
    "Point2D": "RIHS01_eab0e83f44ab4de92ceaf76dd7d0e7638f2bdd1d16ffbe16c7a136c48e407247",
    "Pose2D": "RIHS01_b0b5d1d7b4c20dd4fcde3ed1d4b289a919290572007d67a97043814db25d3648",
    "VisionClass": "RIHS01_1e4a11f0fed50b5623cb8ff26ca0e37952a48a9c074d16f804b44e9164c2037a",
    "VisionInfo": "RIHS01_95d3116a17484ad91c9a2686e1d54890bbfc3ff6c6a2de137738c4950d45d284",
}

PACKET_HASH = "RIHS01_648d84e0d33cbf76daf54b094d8f06154b8a24800a19c14371754df799fbaf79"


@pytest.fixture
def node(ros_domain_id: int) -> Iterator[Node]:
    """Create a node in its own context and domain."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros_domain_id)
    node = rclpy.create_node("interfaces_test", context=context)
    yield node
    node.destroy_node()
    rclpy.shutdown(context=context)


def spin_until(node: Node, condition: Callable[[], bool]) -> None:
    """Spin `node` until `condition` holds; fail after DEADLINE_S."""
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"condition not met within {DEADLINE_S} s"
        executor.spin_once(timeout_sec=0.05)
    executor.shutdown()


def test_type_hashes(node: Node) -> None:
    """Every type has the hash of the official interface.

    The expected hashes come from the official vision_msgs, branch ros2, generated with
    rosidl 4.9.5. The actual ones are those that Fast DDS announces for a publisher.
    """
    publishers = {
        name: node.create_publisher(getattr(vision_msgs, name), f"type_{name}", 1)
        for name in EXPECTED_HASHES
    }
    spin_until(
        node, lambda: all(node.count_publishers(pub.topic_name) for pub in publishers.values())
    )
    endpoints = {
        name: node.get_publishers_info_by_topic(pub.topic_name)[0]
        for name, pub in publishers.items()
    }
    if not hasattr(endpoints["Point2D"], "topic_type_hash"):
        pytest.skip("this ROS 2 distribution (Humble) has no type hashes")
    assert {name: str(info.topic_type_hash) for name, info in endpoints.items()} == EXPECTED_HASHES


def test_packet_of_video_has_the_official_hash(node: Node) -> None:
    """The hash is of the fields of the official FFMPEGPacket, version 1.x and later."""
    name = "ffmpeg_image_transport_msgs.msg"
    packets = pytest.importorskip(name, reason="needs it: run interfaces/build.py")
    publisher = node.create_publisher(packets.FFMPEGPacket, "packets", 1)
    spin_until(node, lambda: node.count_publishers(publisher.topic_name) > 0)
    (endpoint,) = node.get_publishers_info_by_topic(publisher.topic_name)
    if not hasattr(endpoint, "topic_type_hash"):
        pytest.skip("this ROS 2 distribution (Humble) has no type hashes")
    assert str(endpoint.topic_type_hash) == PACKET_HASH


def filled_detections() -> vision_msgs.Detection2DArray:
    """Return a message in which no field at any level has its default value."""
    message = vision_msgs.Detection2DArray()
    message.header.stamp.sec = 1_700_000_000
    message.header.stamp.nanosec = 123_456_789
    message.header.frame_id = "camera_optical"
    for index in range(3):
        hypothesis = vision_msgs.ObjectHypothesisWithPose()
        hypothesis.hypothesis.class_id = f"class-ä{index}"
        hypothesis.hypothesis.score = 0.5 + index / 10
        hypothesis.pose = PoseWithCovariance()
        hypothesis.pose.pose.position.z = 12.5 + index
        hypothesis.pose.pose.orientation.w = 0.25
        hypothesis.pose.covariance = [float(value + index) for value in range(36)]
        detection = vision_msgs.Detection2D()
        detection.header = message.header
        detection.results = [hypothesis] * (index + 1)
        detection.bbox.center.position.x = 320.5 + index
        detection.bbox.center.position.y = 240.25 + index
        detection.bbox.center.theta = 0.125
        detection.bbox.size_x = 33.0 + index
        detection.bbox.size_y = 44.0 + index
        detection.id = f"track-{index}"
        message.detections.append(detection)
    return message


def test_detections_over_dds(node: Node) -> None:
    """A filled Detection2DArray arrives unchanged, at every level."""
    received: list[vision_msgs.Detection2DArray] = []
    node.create_subscription(vision_msgs.Detection2DArray, "detections", received.append, 1)
    publisher = node.create_publisher(vision_msgs.Detection2DArray, "detections", 1)
    spin_until(node, lambda: publisher.get_subscription_count() > 0)
    sent = filled_detections()
    publisher.publish(sent)
    spin_until(node, lambda: bool(received))
    assert received[0] == sent
