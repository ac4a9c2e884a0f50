"""Fixtures of the node's tests, which are skipped without ROS 2."""

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")
pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not installed")


@pytest.fixture(autouse=True)
def frequent_and_repeatable_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Report every 0.1 s, and keep the temperature of this machine out of the levels."""
    from drone_kd.ros import detector_node

    monkeypatch.setattr(detector_node, "REPORT_SECONDS", 0.1)
    monkeypatch.setattr(detector_node, "MATCH_SECONDS", 0.1)
    monkeypatch.setattr(detector_node, "temperatures_c", lambda: {"cpu-thermal": 50.0})
