"""Flights over real DDS in processes of their own: what CI demands of the default model."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from tiny_model import write_bright_cell_model

pytest.importorskip("rclpy", reason="ROS 2 is not here")
pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not here")
pytest.importorskip(
    "pycocotools", reason="pycocotools is not here: pip install drone_kd[simulation]"
)

from drone_kd import cli
from drone_kd.core.model_spec import ModelError
from drone_kd.detector import load_detector
from drone_kd.paths import default_model_path
from drone_kd.simulation.rehearse import detector_command, rehearse
from drone_kd.simulation.scene import FlightPlan, fly
from drone_kd.simulation.simulate import ros_arguments


def fly_here(tmp_path, detector, seconds, **camera):
    camera = {"rate": 10.0, "seconds": float(seconds), "seed": 2, **camera}
    return rehearse(ros_arguments(camera), tmp_path / "out", detector, seconds, pictures=0)


def has_default_model():
    try:
        return default_model_path().is_file()
    except ModelError:
        return False


@pytest.mark.skipif(not has_default_model(), reason="this installation has no default model")
def test_the_default_model_finds_cars_soon_enough(tmp_path, ros_domain_id):
    detector = load_detector()
    # As large as the network's input: nothing is lost, and the machine has less to carry.
    size = {"width": 640, "height": 360}
    frame = next(fly(FlightPlan(scene="forest-edge", seed=2, **size))).image
    bare_ms = np.median([detector.timed(frame)[1].total_ms for _ in range(15)][5:])
    scored = fly_here(tmp_path, detector_command("", 0.05), 20, scene="forest-edge", **size)
    assert scored["frames"]["answered"] > 20, scored["frames"]
    assert scored["offline"]["ap50"]["car"] > 0.4, scored["offline"]
    assert scored["offline"]["recall"] >= scored["streaming"]["recall"] > 0
    # A busy machine slows the bare loop and the flight alike; half a second is for its scheduler.
    assert scored["latency_ms"]["p50"] < 4 * bare_ms + 500, (bare_ms, scored["latency_ms"])
    assert scored["age_ms"]["p50"] < 4 * bare_ms + 600, (bare_ms, scored["age_ms"])


def test_a_camera_that_stops_and_a_clock_that_jumps_are_in_the_score(tmp_path, ros_domain_id):
    model = write_bright_cell_model(tmp_path / "model.onnx")
    scored = fly_here(
        tmp_path,
        detector_command(str(model), 0.25),
        11,
        outage=[3.0, 3.0],
        clock_jump=[8.0, -2.5],
        width=320,
        height=240,
    )
    notes = "; ".join(scored["notes"])
    assert "the camera delivered nothing for 3." in notes, notes
    assert "the camera's clock went back by 2.4 s" in notes, notes
    assert scored["frames"]["not_delivered"] >= 25
    assert scored["frames"]["answered"] > 30
    assert json.loads((tmp_path / "out" / "score.json").read_text()) == scored
    assert "went back" in (tmp_path / "out" / "report.html").read_text()


def test_a_detector_that_dies_on_the_way(tmp_path, ros_domain_id, capfd):
    model = write_bright_cell_model(tmp_path / "model.onnx")
    dies = (
        "import os, threading, sys, drone_kd.ros.detector_node as n\n"
        "make = n.to_detection_array\n"
        "left = [20]\n"
        "def die(*args):\n"
        "    left[0] -= 1\n"
        "    return make(*args) if left[0] else os._exit(3)\n"
        "n.to_detection_array = die\n"
        "n.main(sys.argv)\n"
    )
    arguments = detector_command(str(model), 0.25)[3:]
    detector = [sys.executable, "-c", dies, *arguments]
    scored = fly_here(tmp_path, detector, 6, width=320, height=240)
    assert "the detector ended with exit code 3" in capfd.readouterr().err
    assert any("the detector fell silent" in note for note in scored["notes"]), scored["notes"]
    assert scored["frames"]["answered"] == 19


def test_a_detector_that_cannot_start_is_one_line(tmp_path, ros_domain_id, capfd):
    started = time.monotonic()
    with pytest.raises(Exception, match="the detector ended with exit code 7 before the flight"):
        fly_here(tmp_path, [sys.executable, "-c", "raise SystemExit(7)"], 60)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--output", "{out}", "--seconds", "0"], "a rehearsal ends"),
        (["no.onnx", "--output", "{out}"], "no.onnx: no such model"),
        ([], "--output"),
    ],
)
def test_wrong_options_are_one_line_and_2(options, says, tmp_path, capfd):
    assert cli.main(["rehearse", *(o.format(out=tmp_path / "x") for o in options)]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and says in error and not (tmp_path / "x").exists()


def test_the_command_prints_the_score(tmp_path):
    model = write_bright_cell_model(tmp_path / "model.onnx")
    done = subprocess.run(
        [sys.executable, "-m", "drone_kd.cli", "rehearse", str(model), "--seconds", "3"]
        + ["--size", "320x240", "--scene", "crossing", "--output", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "streaming" in done.stdout and str(tmp_path / "out" / "report.html") in done.stdout
