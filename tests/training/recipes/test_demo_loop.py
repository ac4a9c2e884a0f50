"""The loop of fly, record, mine, retrain, judge, swap and fly again, over real DDS."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from drone_kd.lineage import generations
from drone_kd_training.distillation.config import NO_TEACHER
from drone_kd_training.mining import selection
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.recipes import runner
from drone_kd_training.recipes.demo_loop import Plan, main, run
from drone_kd_training.retraining import guard, retrain
from drone_kd_training.retraining.stretches import Blocks

pytest.importorskip("rclpy", reason="the flight needs ROS 2")


def save_variant(path: Path, logit_shift: float, box_scale: float) -> Path:
    """Save the loop's student with shifted class logits and scaled weights of its box branch."""
    model, _ = load_model(Plan.model)
    with torch.no_grad():
        for boxes, classes in zip(model.model[-1].cv2, model.model[-1].cv3, strict=True):
            classes[-1].bias += logit_shift
            boxes[-1].weight *= box_scale
            boxes[-1].bias *= box_scale
    model.args = {"imgsz": 320}
    torch.save({"model": model.half(), "train_args": {"imgsz": 320}}, path)
    return path


def one_per_frame(paths: list[Path], least: float, objects: np.ndarray) -> Blocks:
    return Blocks(np.arange(len(paths)), "stretch")


def percentiles(figure: float, resampled: np.ndarray, blocks: float, confidence: float) -> tuple:
    return tuple(np.nanquantile(resampled, (0.025, 0.975)))


@pytest.mark.slow
@pytest.mark.timeout(900)  # its own waits end it; this one counts where they cannot
def test_better_candidate_passes_the_guard_and_replaces_the_model_in_flight(
    tmp_path, monkeypatch, capsys, ros_domain_id
):
    """The deployed model's boxes are useless; training is replaced by a model whose boxes fit.

    So the candidate is better by construction, and the guard's real margins decide.
    """
    good = save_variant(tmp_path / "good.pt", logit_shift=2.5, box_scale=1.0)
    useless = save_variant(tmp_path / "useless.pt", logit_shift=1.0, box_scale=0.0)
    trained = {}

    def train(config, output, resume=False):
        trained[output.name] = config
        output.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(good, output / "best.pt")

    monkeypatch.setattr(runner, "distill", train)
    monkeypatch.setattr(retrain, "distill", train)
    # A flight this short may have one held-out frame, beside a training frame or much like it.
    monkeypatch.setattr(selection, "_GAP", 0.0)
    monkeypatch.setattr(selection, "_NEAR_DUPLICATE", -1.0)
    monkeypatch.setattr(selection, "_HELD_OUT_OF", 3)  # more blocks, as few have frames
    # One held-out frame has fewer objects and no flights to draw, but the margins stay.
    monkeypatch.setattr(guard, "MIN_OBJECTS", 5)
    monkeypatch.setattr(guard, "MIN_BLOCKS", 0)
    monkeypatch.setattr(guard, "frame_blocks", one_per_frame)
    monkeypatch.setattr(guard, "interval", percentiles)
    monkeypatch.setattr(guard, "RESAMPLES", 100)
    plan = Plan(
        output=tmp_path / "loop",
        teacher=str(good),
        model=str(useless),
        scene="crossing",
        imgsz=320,
        teacher_places=2,
        teacher_frames=1,
        base_train=2,
        base_val=4,
        places=1,
        seconds=12.0,
        scored_seconds=3.0,
        mined=4,
        per_scene=4,
        keep=0.0,
    )
    summary = run(plan)
    assert summary["guard"]["accepted"]
    assert trained["teacher"].teacher == NO_TEACHER and trained["teacher"].student == str(good)
    assert trained["run"].student == str(useless)
    scores = [summary[flight]["offline"]["map50"] for flight in ("before", "after")]
    assert scores[0] < 0.01 < 0.05 < scores[1]
    deployed = Path(summary["guard"]["model"])
    itself, parent = generations(deployed)
    assert itself.command == "make demo-loop"
    assert parent.sha256 == generations(plan.output / "deployed.onnx")[0].sha256
    assert f"{itself.sha256[:12]}" in (plan.output / "node.log").read_text()
    sheet = cv2.imread(summary["image"])
    assert sheet is not None and sheet.std() > 5
    assert json.loads((plan.output / "summary.json").read_text())["guard"] == summary["guard"]
    out = capsys.readouterr().out
    assert "before" in out and "after" in out and "mAP50-95 (%)" in out


def test_output_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--output", str(tmp_path / "file")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
