"""The scripts of examples/ run as their docstrings say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from drone_kd.paths import default_model_path, selftest_image_path

if TYPE_CHECKING:
    from ground_station import Ground

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str, *arguments: object) -> str:
    """Run an example as a user does, and return what it prints."""
    command = [sys.executable, EXAMPLES / name, *arguments]
    done = subprocess.run(
        [*map(str, command)], cwd=EXAMPLES.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_detect_prints_class_score_and_box():
    lines = run("detect.py", selftest_image_path()).splitlines()
    assert len(lines) >= 5
    scores = [float(line.split()[1]) for line in lines]
    assert scores == sorted(scores, reverse=True)
    assert all(line.startswith("car ") and line.count("[") == 1 for line in lines)


def test_detect_names_an_unreadable_image(tmp_path):
    command = [sys.executable, EXAMPLES / "detect.py", tmp_path / "missing.jpg"]
    done = subprocess.run(
        [*map(str, command)], cwd=EXAMPLES.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("expected an image, got ")


@pytest.mark.parametrize("name", ["detect.py", "read_model.py", "distil.py"])
@pytest.mark.parametrize("arguments", [[], ["missing.onnx"], ["a", "b", "c", "missing"]])
def test_wrong_arguments_are_a_line_and_no_traceback(name, arguments, tmp_path):
    if name == "distil.py":
        pytest.importorskip("drone_kd_training", reason="the training part is not installed")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "expected" in done.stderr or name in done.stderr


def test_read_model_prints_the_spec_and_the_lineage():
    text = run("read_model.py", default_model_path())
    assert "person, two-wheeler, car, truck, bus" in text
    assert "uint8 NHWC (1, 640, 640, 3), BGR" in text
    assert "AGPL-3.0" in text and "has no lineage" in text


@pytest.mark.slow
def test_subscribe_prints_the_detections_of_the_node(request: pytest.FixtureRequest):
    pytest.importorskip("rclpy", reason="ROS 2 is not installed")
    pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not installed")
    from node_process import NodeProcess

    flying: Ground = request.getfixturevalue("flying")
    listener = NodeProcess("examples.subscribe")
    try:
        assert flying.detector is not None
        (publisher,) = (
            p for p in flying.detector.publishers if p.topic_name == "/detector/detections"
        )
        # The ground station is the other subscriber.
        flying.wait_until(lambda: publisher.get_subscription_count() == 2, "it subscribes")
        image = np.zeros((64, 64, 3), np.uint8)
        image[8:16, 16:24] = 255
        flying.send_and_wait(image)
        assert "car 1.00 at 20, 12" in listener.wait_for_line("car")
        assert listener.stop()[0] == 0
    finally:
        listener.kill()


@pytest.mark.slow
def test_distil_and_export_leaves_a_model_with_its_classes(tmp_path, capsys):
    pytest.importorskip("torch", reason="the training part is not installed")
    from drone_kd.backends.onnx_runtime import read_spec
    from examples.distil import distil_and_export
    from square_detector import save_square_detector
    from tiny_training import NAMES, SIZE, draw_set, save_checkpoint

    model = distil_and_export(
        str(draw_set(tmp_path / "data")),
        str(save_checkpoint(tmp_path / "teacher.pt")),
        str(save_square_detector(tmp_path / "student.pt")),
        tmp_path / "run",
        epochs=1,
        imgsz=SIZE,
        batch=6,
        device="cpu",
        overrides={"warmup_epochs": 0.0, "mosaic": 0.0, "close_mosaic": 0, "nbs": 6},
    )
    assert read_spec(model).classes == NAMES
    assert "student: mAP50-95" in capsys.readouterr().out
