"""Client of a detector node, over real DDS."""

from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from drone_kd_training.recipes.detector_client import DetectorClient


def test_refused_recording_is_told_at_once(ground, model, tmp_path):
    (tmp_path / "file").touch()
    site = ground(model=model, record_directory=tmp_path / "file")
    site.add_detector()
    client = DetectorClient(SimpleNamespace(poll=lambda: None), Path("log"))
    try:
        with pytest.raises(RuntimeError, match="record_directory: expected a folder"):
            client.record(True)  # it retries for minutes while a bag is being finished
    finally:
        client.ros.destroy_node()
