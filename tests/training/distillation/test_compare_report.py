"""Tables of the paired protocol, of made-up runs."""

import json

import pytest

from drone_kd_training.distillation.arm_figures import summarise
from drone_kd_training.distillation.compare_report import (
    PLAIN,
    differences,
    is_ours,
    write_tables,
)
from drone_kd_training.distillation.experiment_plan import Plan
from drone_kd_training.distillation.paired_comparison import SEED, Primary

PLAN = Plan(
    ("plain", "builtin:1", "builtin:6", "distilled", "plain:time", "terms=class"),
    (0, 1, 2),
    length="10 epochs",
)
PRIMARY = Primary("distilled", "plain", plan=PLAN)
TEACHER = {
    "map50_95": 0.5,
    "map50": 0.7,
    "parameters": 9_000_000,
    "imgsz": 640,
    "per_class": {"car": {"ap50_95": 0.6}, "bus": {"ap50_95": 0.4}},
    "classes_not_in_model": [],
}


def runs(arm: str, scores: tuple[float, ...], seconds: float = 10.0) -> list[dict]:
    row = {"arm": arm, "steps": 100, "seconds": seconds, "parameters": 3_000_000}
    return [
        row | {"seed": seed, "map50_95": score, "map50": score + 0.2}
        for seed, score in enumerate(scores)
    ]


ROWS = [
    *runs("plain", (0.20, 0.30, 0.40)),
    *runs("builtin:1", (0.20, 0.31, 0.41)),
    *runs("builtin:6", (0.10, 0.20, 0.30)),
    *runs("distilled", (0.25, 0.34, 0.46), seconds=15.0),
    *runs("plain:time", (0.21, 0.33, 0.42), seconds=15.0),
    *runs("terms=class", (0.24, 0.33, 0.45)),
]


def test_summary_compares_runs_of_the_same_seed():
    found = {s.arm: s for s in summarise(ROWS, 0.50, PLAIN, SEED)}
    plain, own = found["plain"], found["distilled"]
    assert plain.gain is None
    assert plain.mean == pytest.approx(0.30)
    assert plain.spread == pytest.approx(0.1)
    assert own.gain == pytest.approx(0.05)
    assert own.gap_share == pytest.approx(0.25)
    assert own.time_ratio == found["plain:time"].time_ratio == pytest.approx(1.5)
    # 0.05 +- t(0.975, 2) * 0.01 / sqrt(3)
    assert own.gain_interval == pytest.approx((0.05 - 0.02484, 0.05 + 0.02484), abs=1e-4)
    assert all(
        s.gap_share is None for s in summarise(ROWS, 0.32, PLAIN, SEED)
    )  # a gap of 2 points


def test_ours_is_compared_with_every_kind_of_arm():
    found = differences(ROWS, PRIMARY)
    assert [(d.other, d.role, d.candidates) for d in found] == [
        ("plain:time", "student alone for the time of ours", 1),
        ("builtin:1", "built-in distillation", 2),
        ("terms=class", "", 1),
    ]
    late = differences(ROWS, Primary("distilled", "plain", runs_before=6))
    assert late[0].other == "plain"  # not primary, and corrected as the others
    variants = differences(ROWS, Primary(None, "plain"))
    assert [(d.arm, d.other) for d in variants] == [
        *(("distilled", "plain"), ("terms=class", "plain"))
    ]
    assert [arm for arm in ("plain", "plain:time", "builtin:1", "beta=1") if is_ours(arm)] == [
        "beta=1"
    ]


def test_tables_begin_with_the_primary_comparison(tmp_path):
    write_tables(tmp_path, TEACHER, PRIMARY, ROWS, PLAN)
    text = (tmp_path / "compare.md").read_text()
    assert text.splitlines()[0] == (
        "Primary: distilled - plain = +5.0 points [+2.5, +7.5], n = 3 seeds, "
        "mAP50-95 on 2 classes (car, bus), 640 px"
    )
    assert "| teacher | | | 50.0 | 70.0 | | | |" in text
    assert "| distilled | 3 | 100 | 35.0 ± 10.5 | 55.0 | +5.0 | 25 % | 1.50 |" in text
    assert "| built-in distillation; best of 2 on this split, in its favour |" in text
    assert "| distilled - terms=class | +1.0 [+1.0, +1.0] | 3 | < 0.001 |  |" in text
    assert "do not cover other data, other labels or other teachers" in text
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["primary"]["difference"]["p"] == pytest.approx(0.0131, abs=1e-4)
    assert [d["other"] for d in content["secondary"]] == ["plain:time", "builtin:1", "terms=class"]
