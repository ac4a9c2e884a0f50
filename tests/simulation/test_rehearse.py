"""Flights over real DDS in processes of their own."""

import argparse
import json
import os
import re
import signal
import sys

import numpy as np
import pytest

from command_line import only_message
from commands import run_command
from tiny_model import write_bright_cell_model

pytest.importorskip("rclpy", reason="ROS 2 is not here")
pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not here")
pytest.importorskip(
    "pycocotools", reason="pycocotools is not here: pip install drone_kd[simulation]"
)

from drone_kd import cli
from drone_kd.core.model_spec import ModelError
from drone_kd.media.image_files import SourceError
from drone_kd.paths import default_model_path
from drone_kd.simulation import rehearse as rehearse_module
from drone_kd.simulation.rehearse import detector_command, rehearse
from drone_kd.simulation.scoring.flight_record import read_flight
from drone_kd.simulation.simulate import ros_arguments


def fly_here(tmp_path, detector, seconds, **camera):
    camera = {"rate": 10.0, "seconds": float(seconds), "seed": 2, **camera}
    return rehearse(ros_arguments(camera), tmp_path / "out", detector, seconds, misses=0)


def has_default_model():
    try:
        return default_model_path().is_file()
    except ModelError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not has_default_model(), reason="this installation has no default model")
def test_default_model_detects_cars_without_a_backlog(tmp_path, ros_domain_id):
    # As large as the network's input: no object gets smaller.
    flight = {"width": 640, "height": 360, "scene": "forest-edge"}
    scored = fly_here(tmp_path, detector_command("", 0.05), 8, **flight)
    assert scored["frames"]["processed"] >= 8, scored["frames"]
    assert scored["offline"]["ap50"]["car"] > 0.4, scored["offline"]
    # A queue of ten frames would make predictions about ten intervals old. Both figures grow
    # alike on a busy machine.
    (leg,) = read_flight(tmp_path / "out" / "flight.jsonl").legs
    interval = np.median(np.diff([p.at_ns for p in leg.predictions]))
    latency = np.median([p.at_ns - p.stamp_ns for p in leg.predictions])
    assert latency < 4 * interval, (latency / 1e6, interval / 1e6)


@pytest.mark.slow
def test_camera_outage_and_clock_jump_are_in_the_score(tmp_path, ros_domain_id):
    model = write_bright_cell_model(tmp_path / "model.onnx")
    faults = {"outage": [1.0, 1.5], "clock_jump": [3.5, -2.0]}
    detector = detector_command(str(model), 0.25)
    scored = fly_here(tmp_path, detector, 5, **faults, width=320, height=240)
    notes = "; ".join(scored["notes"])
    silence = re.search(r"the camera delivered nothing for ([\d.]+) s", notes)
    assert silence and float(silence[1]) > 1.4, notes
    jump = re.search(r"the camera's clock went back by ([\d.]+) s", notes)
    assert jump and 0 < float(jump[1]) < 2, notes
    frames = scored["frames"]
    assert frames["not_delivered"] > 0 and frames["processed"] > 0
    assert frames["due"] == frames["not_delivered"] + frames["delivered"]
    assert json.loads((tmp_path / "out" / "score.json").read_text()) == scored
    assert "went back" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_detector_that_dies_in_flight_is_named_and_scored(tmp_path, ros_domain_id, capfd):
    model = write_bright_cell_model(tmp_path / "model.onnx")
    dies = (
        "import os, sys, drone_kd.ros.camera as c, drone_kd.ros.detector_node as n\n"
        "make = c.to_detection_array\n"
        "left = [6]\n"
        "def die(*args):\n"
        "    left[0] -= 1\n"
        "    return make(*args) if left[0] else os._exit(3)\n"
        "c.to_detection_array = die\n"
        "n.main(sys.argv)\n"
    )
    arguments = detector_command(str(model), 0.25)[3:]
    detector = [sys.executable, "-c", dies, *arguments]
    scored = fly_here(tmp_path, detector, 5, width=320, height=240)
    assert "the detector ended with exit code 3" in capfd.readouterr().err
    assert any("the detector fell silent" in note for note in scored["notes"]), scored["notes"]
    assert 1 <= scored["frames"]["processed"] <= 5


def test_detector_that_cannot_start_ends_the_rehearsal(tmp_path, ros_domain_id):
    # A flight that began would last longer than any test may.
    with pytest.raises(SourceError, match="the detector ended with exit code 7 before the flight"):
        fly_here(tmp_path, [sys.executable, "-c", "raise SystemExit(7)"], 10**6)


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
    assert says in only_message(capfd) and not (tmp_path / "x").exists()


def test_folder_of_another_run_is_not_overwritten(tmp_path, capfd):
    (tmp_path / "report.html").write_text("another")
    assert cli.main(["rehearse", "--output", str(tmp_path), "--seconds", "1"]) == 2
    assert "expected a new folder, or that of an earlier rehearsal" in only_message(capfd)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_domain_that_is_set_stays(tmp_path, ros_domain_id, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def fly(*_):
        raise SourceError(f"domain {os.environ['ROS_DOMAIN_ID']}")

    monkeypatch.setattr(rehearse_module, "rehearse", fly)
    arguments = argparse.ArgumentParser()
    rehearse_module.add_options(arguments)
    with pytest.raises(SourceError, match=f"^domain {ros_domain_id}$"):
        rehearse_module.run(arguments.parse_args(["--output", str(tmp_path / "out")]))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_prints_the_score(tmp_path, ros_domain_id):
    model = write_bright_cell_model(tmp_path / "model.onnx")
    command = [sys.executable, "-m", "drone_kd.cli", "rehearse", str(model), "--seconds", "2"]
    command += ["--size", "320x240", "--scene", "crossing", "--output", str(tmp_path / "out")]
    output = run_command(command)
    assert "streaming" in output and str(tmp_path / "out" / "report.html") in output
