"""The whole loop on tiny numbers: fly, record, mine, retrain, judge, swap, fly again; real DDS."""

import json
from pathlib import Path

import cv2
import pytest

import drone_kd_training.recipes.demo_loop
import drone_kd_training.retraining.guard
from drone_kd.lineage import generations
from drone_kd_training.recipes.demo_loop import Plan, main, run

pytest.importorskip("rclpy", reason="the flight needs ROS 2")


@pytest.mark.timeout(300)  # flights in real time, and trainings
def test_a_flight_at_night_ends_with_another_model_in_the_same_node(
    tmp_path, monkeypatch, capsys, ros_domain_id
):
    for bar in ("GAIN", "MARGIN", "PART_MARGIN"):  # so short a training makes nothing better
        monkeypatch.setattr(drone_kd_training.retraining.guard, bar, -1.1)
    monkeypatch.setattr(drone_kd_training.retraining.guard, "AGREEMENT", 0.0)
    monkeypatch.setattr(drone_kd_training.retraining.guard, "MIN_OBJECTS", 1)
    monkeypatch.setattr(drone_kd_training.retraining.guard, "RESAMPLES", 20)
    plan = Plan(
        output=tmp_path / "loop",
        teacher=drone_kd_training.recipes.demo_loop.Plan.model,  # the smallest there is
        imgsz=160,
        teacher_places=2,
        teacher_frames=3,
        teacher_epochs=1,
        base_train=8,
        base_val=4,
        places=1,
        seconds=8.0,
        scored_seconds=3.0,
        mined=4,
        epochs=1,
    )
    summary = run(plan)
    assert summary["guard"]["accepted"]
    assert summary["before"]["frames"]["answered"] and summary["after"]["frames"]["answered"]
    _, parent = generations(Path(summary["guard"]["model"]))
    assert parent.metrics  # the default model's own
    sheet = cv2.imread(summary["picture"])
    assert sheet is not None and sheet.std() > 5
    assert json.loads((plan.output / "summary.json").read_text())["guard"] == summary["guard"]
    out = capsys.readouterr().out
    assert "before" in out and "after" in out and "mAP50-95 (%)" in out


def test_what_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--output", str(tmp_path / "file")]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
