from pathlib import Path

import polars
import pytest
import yaml

from drone_kd_training.data.dataset import image_paths, load_data
from drone_kd_training.distillation.compare import (
    arm_config,
    as_markdown,
    best_builtin,
    compare,
    default_arms,
    hold_out,
    interval,
    summarise,
)
from drone_kd_training.distillation.config import NO_TEACHER, Config
from tiny_training import SIZE, draw_set

SHORT = {"mosaic": 0.0, "close_mosaic": 0, "optimizer": "AdamW", "lr0": 0.002, "nbs": 6}


def config(data="d.yaml", teacher="t.pt", **changes) -> Config:
    values = {"student": "aerial-student.yaml", "epochs": 1, "imgsz": SIZE, "batch": 6}
    return Config(
        str(data), str(teacher), **{**values, "val": False, "overrides": SHORT, **changes}
    )


def test_arms_are_changes_of_one_run():
    base = config()
    assert default_arms(base) == [
        *("plain", "builtin:0.5", "builtin:1", "builtin:2", "builtin:6"),
        *("distilled", "terms=assign", "terms=class"),
    ]
    assert arm_config("distilled", base) == base
    assert arm_config("plain", base).teacher == NO_TEACHER
    builtin = arm_config("builtin:2", base)
    assert builtin.teacher == NO_TEACHER and builtin.overrides["lr0"] == 0.002
    assert (builtin.overrides["distill_model"], builtin.overrides["dis"]) == ("t.pt", 2.0)
    changed = arm_config("terms=class+feature;balance=0.1;teacher_scale=2", base)
    assert (changed.terms, changed.balance, changed.teacher_scale) == (
        ("class", "feature"),
        0.1,
        2,
    )
    with pytest.raises(ValueError, match="arm 'colour=red': colour is neither"):
        arm_config("colour=red", base)


def row(arm: str, seed: int, score: float, seconds: float = 10.0) -> dict:
    return {"arm": arm, "seed": seed, "map50_95": score, "seconds": seconds}


def test_summary_is_of_differences_within_a_seed():
    rows = [
        *(row("plain", seed, score) for seed, score in enumerate((0.20, 0.30, 0.40))),
        *(row("builtin:1", seed, score) for seed, score in enumerate((0.20, 0.31, 0.41))),
        *(row("builtin:6", seed, score) for seed, score in enumerate((0.10, 0.20, 0.30))),
        *(row("distilled", seed, score, 15.0) for seed, score in enumerate((0.25, 0.34, 0.46))),
    ]
    plain, builtin, _, own = found = summarise(rows, teacher=0.50)
    assert plain.gain is None and plain.mean == pytest.approx(0.30)
    assert plain.spread == pytest.approx(0.1)
    assert own.gain == pytest.approx(0.05) and own.gap_share == pytest.approx(0.25)
    assert own.time_ratio == pytest.approx(1.5)
    # 0.05 +- t(0.975, 2) * 0.01 / sqrt(3)
    assert own.gain_interval == pytest.approx((0.05 - 0.02484, 0.05 + 0.02484), abs=1e-4)
    assert best_builtin(found) == builtin
    assert summarise(rows, teacher=0.32)[-1].gap_share is None  # a gap of 2 points
    rows += [row("terms=class", seed, score) for seed, score in enumerate((0.24, 0.33, 0.45))]
    printed = as_markdown({"map50_95": 0.5}, summarise(rows, teacher=0.50), rows)
    assert "distilled - builtin:1: +4.3 [" in printed and "builtin:6: " not in printed
    assert "distilled - terms=class: +1.0 [+1.0, +1.0]" in printed
    assert interval([0.1]) is None


def test_hold_out_takes_stretches_of_train(tmp_path):
    data = draw_set(tmp_path / "data", train=80)
    split = load_data(hold_out(data, 0.25, tmp_path))
    apart = [int(p.stem) for p in image_paths(split.val)]
    # The end of each eighth of the list.
    assert apart == [i for i in range(80) if i % 10 >= 7.5]
    assert [int(p.stem) for p in image_paths(split.train)] == sorted(set(range(80)) - set(apart))
    for share in (0.001, 1.0):
        with pytest.raises(ValueError, match="leaves nothing"):
            hold_out(data, share, tmp_path)


def test_an_experiment_leaves_a_row_per_run_and_is_not_run_twice(
    tiny_data, tiny_teacher, tmp_path
):
    arms = ["plain", "builtin:1", "distilled"]
    run = config(tiny_data, tiny_teacher)
    teacher, summaries = compare(run, tmp_path, (0, 1), arms)
    assert 0 <= teacher["map50_95"] <= 1 and [s.seeds for s in summaries] == [2, 2, 2]
    table = polars.read_csv(tmp_path / "compare.csv")
    assert list(zip(table["arm"], table["seed"], strict=True)) == [
        (arm, seed) for seed in (0, 1) for arm in arms
    ]
    markdown = (tmp_path / "compare.md").read_text()
    assert "| distilled | 2 |" in markdown and "distilled - builtin:1:" in markdown
    page = (tmp_path / "report.html").read_text()
    assert "<td>distilled, seed 0</td>" in page and page.count("data:image/png;base64,") == 3
    assert "Of 12 labelled objects" in page
    assert "http" not in page  # opens offline
    first = start_of(tmp_path / "runs" / "plain-seed0")
    assert first == start_of(tmp_path / "runs" / "distilled-seed0")  # the same batches
    assert first == start_of(tmp_path / "runs" / "builtin-1-seed0")
    assert first != start_of(tmp_path / "runs" / "plain-seed1")
    best = tmp_path / "runs" / "plain-seed0" / "best.pt"
    before = best.stat().st_mtime_ns
    compare(run, tmp_path, (0, 1), arms)
    assert best.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="of a run with other settings"):
        compare(config(tiny_data, tiny_teacher, batch=4), tmp_path, (0,), arms)


def start_of(run: Path) -> dict:
    """The training settings that decide on weights and batches."""
    arguments = yaml.safe_load((run / "args.yaml").read_text())
    return {k: arguments[k] for k in ("seed", "batch", "model", "lr0", "epochs", "imgsz")}
