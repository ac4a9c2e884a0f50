"""The SROS2 policy allows the detector what it has, and nothing else."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from drone_kd.paths import config_path
from ground_station import Ground
from node_process import NodeProcess

DETECTOR = "enclaves/enclave[@path='/drone_kd/detector']/profiles/profile"
OPERATOR = "enclaves/enclave[@path='/drone_kd/operator']/profiles/profile"


def allowed(profile: str, kind: str, attribute: str) -> set[str]:
    """Return the names of one kind that the policy allows: "topics", "publish"."""
    policy = ElementTree.parse(config_path("sros2/detector.policy.xml"))
    found = policy.findall(f"{profile}/{kind}[@{attribute}='ALLOW']/*")
    assert found
    return {str(element.text) for element in found}


def test_policy_allows_what_the_detector_offers(
    ground: Callable[..., Ground], model: Path
) -> None:
    site = ground(model=model, autostart=True)
    site.add_detector()
    site.wait_for_detector()
    node = site.detector
    assert node is not None
    offered = {name for name, _ in node.get_publisher_names_and_types_by_node("detector", "/")}
    optional = {"/bond"}  # where the package is installed
    # With a camera of its own the node publishes its images, see below.
    assert allowed(DETECTOR, "topics", "publish") - optional == (offered | {"/image"}) - optional
    (image,) = {name for name, _ in node.get_subscriber_names_and_types_by_node("detector", "/")}
    transports = {f"{image}/{name}" for name in ("compressed", "ffmpeg")}
    assert allowed(DETECTOR, "topics", "subscribe") == {image} | transports
    services = {name for name, _ in node.get_service_names_and_types_by_node("detector", "/")}
    # Humble has none of these.
    newer = {
        f"/detector/{name}"
        for name in ("get_type_description", "get_logger_levels", "set_logger_levels")
    }
    assert allowed(DETECTOR, "services", "reply") - newer == services - newer


def test_policy_allows_what_the_detector_offers_with_a_camera(
    ground: Callable[..., Ground], model: Path
) -> None:
    site = ground(model=model, autostart=True, camera="/no/such/video.mp4")
    node = site.add_detector()
    site.wait_for_publisher("/detector/detections")
    offered = {name for name, _ in node.get_publisher_names_and_types_by_node("detector", "/")}
    optional = {"/bond"}
    assert allowed(DETECTOR, "topics", "publish") - optional == offered - optional


@pytest.mark.slow
def test_node_without_its_key_ends_with_one_line(
    start_detector: Callable[..., NodeProcess],
    ros_domain_id: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "enclaves/drone_kd/detector").mkdir(parents=True)
    monkeypatch.setenv("ROS_SECURITY_KEYSTORE", str(tmp_path))
    monkeypatch.setenv("ROS_SECURITY_ENABLE", "true")
    monkeypatch.setenv("ROS_SECURITY_STRATEGY", "Enforce")
    code, output = start_detector("--enclave", "/drone_kd/detector", autostart=True).wait()
    assert code == 2
    assert output.splitlines()[-1].startswith("detector: error: ") and "Traceback" not in output


def test_operator_may_call_and_read_all_of_the_detector() -> None:
    services = allowed(DETECTOR, "services", "reply")
    assert allowed(OPERATOR, "services", "request") == services
    topics = allowed(DETECTOR, "topics", "publish") - {"/image"}  # debug images are enough
    assert allowed(OPERATOR, "topics", "subscribe") == topics


def test_camera_may_publish_images_only() -> None:
    camera = DETECTOR.replace("detector", "camera")
    images = allowed(DETECTOR, "topics", "subscribe")
    assert allowed(camera, "topics", "publish") == images | {"/parameter_events", "/rosout"}


def test_policy_has_no_comment_between_its_enclaves() -> None:
    # The command `ros2 security generate_artifacts` ends with an error at one.
    text = config_path("sros2/detector.policy.xml").read_text(encoding="utf-8")
    assert "<!--" not in text[text.index("<enclaves>") :]
