"""The demo on tiny data: render, train twice, export, fly over real DDS."""

import json

import cv2
import pytest

from drone_kd_training.recipes import demo
from drone_kd_training.recipes.demo import Plan, main, run
from tiny_training import save_checkpoint

pytest.importorskip("rclpy", reason="the flight needs ROS 2")


@pytest.mark.slow
def test_demo_runs_all_steps_and_a_second_run_skips_finished_ones(
    tmp_path, monkeypatch, capsys, ros_domain_id
):
    monkeypatch.setattr(demo, "FLIGHT_SECONDS", 3.0)
    names = ("person", "car", "truck", "bus")
    plan = Plan(
        output=tmp_path / "demo",
        teacher=str(save_checkpoint(tmp_path / "teacher.pt", names=names)),
        epochs=1,
        imgsz=64,
        batch=8,
        train_frames=10,
        val_frames=5,
    )
    summary = run(plan)
    assert summary["flight"]["frames_out"] > 0
    assert summary["flight"]["frames_in"] > 0
    assert 0 < summary["flight"]["latency_p50_ms"] <= summary["flight"]["latency_p95_ms"]
    assert summary["gates"]["box, px, 100 % of rows"]["measured"] < 0.05
    assert {"teacher", "student_alone", "distilled"} <= set(summary)
    sheet = cv2.imread(str(plan.output / "flight" / "contact-sheet.jpg"))
    assert sheet is not None and sheet.std() > 5
    assert json.loads((plan.output / "summary.json").read_text()) == summary

    files = [plan.output / name for name in ("distilled/best.pt", "model.onnx", "flight.json")]
    before = [path.stat().st_mtime_ns for path in files]
    capsys.readouterr()
    assert run(plan)["distilled"] == summary["distilled"]
    assert [path.stat().st_mtime_ns for path in files] == before
    out = capsys.readouterr().out
    assert "mAP50-95" in out.rsplit("Summary", 1)[1] and "images in" in out


def test_finished_folder_refuses_other_settings(tmp_path, tiny_data, capsys):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "config.yaml").write_text("data: x\nteacher: none\nstudent: s.yaml\n")
    arguments = ["--data", str(tiny_data), "--output", str(tmp_path), "--teacher-epochs", "0"]
    assert main(arguments) == 2
    assert "another" in capsys.readouterr().err


def test_missing_data_is_one_line(tmp_path, capsys):
    assert main(["--data", str(tmp_path / "data.yaml"), "--output", str(tmp_path / "out")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
