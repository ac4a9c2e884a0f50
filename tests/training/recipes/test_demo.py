"""The demo on tiny data: render, train two students, draw, export, fly over real DDS."""

import json

import cv2
import pytest

from drone_kd_training.data.dataset import image_paths, label_path, load_data
from drone_kd_training.recipes import demo
from drone_kd_training.recipes.demo import Plan, main, run
from tiny_training import save_checkpoint

pytest.importorskip("rclpy", reason="the flight needs ROS 2")


@pytest.mark.slow
def test_demo_runs_all_steps_and_a_second_run_skips_finished_ones(
    tmp_path, monkeypatch, capsys, ros_domain_id
):
    monkeypatch.setattr(demo, "FLIGHT_SECONDS", 3.0)
    names = ("person", "vehicle")
    plan = Plan(
        output=tmp_path / "demo",
        teacher=str(save_checkpoint(tmp_path / "teacher.pt", names=names)),
        steps=2,
        imgsz=64,
        batch=8,
        labelled_frames=2,
        unlabelled_frames=10,
        val_frames=5,
    )
    summary = run(plan)
    assert summary["flight"]["frames_out"] > 0
    assert summary["flight"]["frames_in"] > 0
    assert 0 < summary["flight"]["latency_p50_ms"] <= summary["flight"]["latency_p95_ms"]
    assert summary["gates"]["box, px, 100 % of rows"]["measured"] < 0.05
    assert {"teacher", "student_alone", "distilled"} <= set(summary)
    picture = cv2.imread(str(plan.output / "comparison.jpg"))
    assert picture is not None and picture.shape == (4 * 480, 4 * 480, 3)
    sheet = cv2.imread(str(plan.output / "flight" / "contact-sheet.jpg"))
    assert sheet is not None and sheet.std() > 5
    assert json.loads((plan.output / "summary.json").read_text()) == summary

    names = (
        "distilled/baseline/best.pt",
        "distilled/best.pt",
        "comparison.jpg",
        "model.onnx",
        "flight.json",
    )
    files = [plan.output / name for name in names]
    before = [path.stat().st_mtime_ns for path in files]
    capsys.readouterr()
    assert run(plan)["distilled"] == summary["distilled"]
    assert [path.stat().st_mtime_ns for path in files] == before
    out = capsys.readouterr().out
    assert "2 of 12 images have labels" in out and "comparison.jpg" in out
    assert "mAP50-95" in out.rsplit("Summary", 1)[1] and "images in" in out


def test_labels_of_all_but_a_few_images_are_hidden(tmp_path):
    plan = Plan(output=tmp_path, imgsz=64, labelled_frames=3, unlabelled_frames=39,
                val_frames=2)  # fmt: skip
    data, unlabelled = demo._prepare_data(plan)
    labelled = image_paths(load_data(data).train)
    hidden = image_paths(tmp_path / "unlabelled")
    assert len(labelled) == len(set(labelled)) == 3 and len(hidden) == 39
    assert all(label_path(path).is_file() for path in labelled)
    assert not any(label_path(path).is_file() for path in hidden)
    assert not {path.name for path in labelled} & {path.name for path in hidden}
    # Of one place, as one flight that somebody has labelled.
    assert [int(path.stem) for path in labelled] == [0, 1, 2]
    assert (str((tmp_path / "unlabelled").resolve()),) == unlabelled


def test_share_of_the_gap_is_told():
    scores = {"student_alone": 0.2, "distilled": 0.35, "teacher": 0.4}
    summary = {
        name: {"map50_95": score, "map50": score, "ap_tiny": None, "parameters": 1, "gflops": 1.0}
        for name, score in scores.items()
    }
    assert "+15.0 points of mAP50-95, of a gap of 20.0 to the teacher (75 %, one seed)" in (
        demo.as_text(summary)
    )
    summary["teacher"] = summary["student_alone"]
    assert "%" not in demo.as_text(summary)


def test_finished_folder_refuses_other_settings(tmp_path, tiny_data, capsys):
    (tmp_path / "distilled").mkdir()
    (tmp_path / "distilled" / "config.yaml").write_text(
        "data: x\nteacher: none\nstudent: s.yaml\n"
    )
    arguments = ["--data", str(tiny_data), "--output", str(tmp_path), "--teacher-epochs", "0"]
    assert main(arguments) == 2
    assert "another" in capsys.readouterr().err


def test_missing_data_is_one_line(tmp_path, capsys):
    assert main(["--data", str(tmp_path / "data.yaml"), "--output", str(tmp_path / "out")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
