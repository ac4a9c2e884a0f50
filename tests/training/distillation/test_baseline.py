"""The student alone beside its distilled copy."""

import json
from dataclasses import replace

import pytest
import torch

from drone_kd.cli import main
from drone_kd_training.distillation import baseline
from drone_kd_training.distillation import distill as distill_module
from drone_kd_training.distillation.config import NO_TEACHER, Config, read_config
from drone_kd_training.distillation.distill import distill
from drone_kd_training.models.checkpoints import load_model
from tiny_training import SIZE

SHORT = {"warmup_epochs": 0.0, "mosaic": 0.0, "close_mosaic": 0, "optimizer": "AdamW", "nbs": 6}


def config(data, teacher, **changes) -> Config:
    values = {"steps": 2, "imgsz": SIZE, "batch": 6, "val": False, "overrides": SHORT, **changes}
    return Config(
        data=str(data),
        teacher=str(teacher),
        student="aerial-student.yaml",
        baseline=True,
        **values,
    )


def weights_of(run):
    """Return all weights of a run's student in one vector."""
    model, _ = load_model(str(run / "best.pt"))
    return torch.cat([w.detach().float().flatten() for w in model.parameters()])


@pytest.mark.slow
def test_baseline_is_the_run_without_its_teacher(tiny_data, tiny_teacher, tmp_path, capsys):
    both = config(tiny_data, tiny_teacher)
    arguments = ["--data", str(tiny_data), "--teacher", str(tiny_teacher), "--baseline"]
    arguments += ["--student", "aerial-student.yaml", "--steps", "2", "--imgsz", str(SIZE)]
    arguments += ["--batch", "6", "--no-val", "--output", str(tmp_path / "both")]
    for key, value in SHORT.items():
        arguments += ["--set", f"{key}={value}"]
    assert main(["distill", *arguments]) == 0
    out = capsys.readouterr().out
    metrics = json.loads((tmp_path / "both" / "metrics.json").read_text())
    assert [line.split("  ")[0] for line in out.splitlines() if " alone  " in line]
    assert "Distillation: " in out and "points of mAP50-95" in out
    by_itself = distill(baseline.alone(both), tmp_path / "alone")
    assert by_itself["teacher"] is None and by_itself["baseline"] is None
    assert metrics["baseline"]["images"] == by_itself["student"]["images"]
    weights = [weights_of(tmp_path / run) for run in ("both/baseline", "alone", "both")]
    # Not equal bit by bit: both may have other numbers of threads.
    assert (weights[0] - weights[1]).abs().max() < 0.1 * (weights[0] - weights[2]).abs().max()
    page = (tmp_path / "both" / "report.html").read_text()
    header = page[page.index("<th>") : page.index("mAP50-95</td>")]
    places = [header.index(name) for name in ("student alone", "distilled", "teacher")]
    assert places == sorted(places)
    assert "were found by the distilled" in page


@pytest.mark.slow
def test_failed_baseline_is_named_and_resumed(tiny_data, tiny_teacher, tmp_path):
    both, output = config(tiny_data, tiny_teacher), tmp_path / "run"
    (tmp_path / "run" / "baseline").mkdir(parents=True)
    other = replace(baseline.alone(both), student="nothing.pt")
    baseline.write_config(both, output)
    baseline.write_config(other, output / "baseline")
    with pytest.raises(RuntimeError, match=r"student alone failed: .*nothing\.pt"):
        distill(both, output, resume=True)
    trained = (output / "weights" / "best.pt").stat().st_mtime_ns
    baseline.write_config(baseline.alone(both), output / "baseline")
    metrics = distill(both, output, resume=True)
    assert metrics["baseline"]["images"] == metrics["student"]["images"]
    assert not (output / "metrics.json").stat().st_mtime_ns < trained


def test_baseline_of_an_earlier_start_with_other_settings_is_forgotten(tiny_data, tmp_path):
    before = config(tiny_data, "teacher.pt", steps=7)
    baseline.write_config(before, tmp_path)
    baseline.write_config(baseline.alone(before), tmp_path / "baseline")
    distill_module._forget_other(before, tmp_path)
    assert read_config(tmp_path / "baseline").steps == 7
    distill_module._forget_other(replace(before, steps=2), tmp_path)
    assert not (tmp_path / "baseline").exists()


@pytest.mark.slow
def test_on_one_core_it_trains_afterwards(tiny_data, tiny_teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(baseline.os, "sched_getaffinity", lambda _: {0})
    started = []
    start = baseline.running

    def recorded(*args, **kwargs):
        started.append((tmp_path / "run" / "weights" / "best.pt").is_file())
        return start(*args, **kwargs)

    monkeypatch.setattr(baseline, "running", recorded)
    assert distill(config(tiny_data, tiny_teacher), tmp_path / "run")["baseline"]
    assert started == [True]


def test_settings_without_the_teacher(tmp_path):
    given = Config(
        data="d.yaml", teacher="t.pt", student="s.yaml", unlabelled=("flight",), views=2,
        teacher_scale=2, baseline=True, steps=7,
    )  # fmt: skip
    alone = baseline.alone(given)
    assert (alone.teacher, alone.unlabelled, alone.views) == (NO_TEACHER, (), 0)
    assert (alone.teacher_scale, alone.baseline, alone.steps) == (1, False, 7)
    baseline.write_config(given, tmp_path)
    assert read_config(tmp_path) == given


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher": NO_TEACHER},
        {"data": "", "classes": ("car",), "unlabelled": ("flight",), "val": False},
        {"data": "", "teacher": "", "teachers": "plan.yaml", "val": False},
        {"quantize": "int8", "student": "s.pt"},
        {"batch": -1},
    ],
)
def test_runs_without_a_baseline(changes):
    values = {"data": "d.yaml", "teacher": "t.pt", "student": "s.yaml", **changes}
    with pytest.raises(ValueError, match="baseline"):
        Config(**values, baseline=True)
