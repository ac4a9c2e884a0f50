"""Figures of single arms, of made-up runs with known answers."""

import numpy as np
import pytest

from drone_kd_training.distillation.arm_figures import arm_table, ratio_interval, summarise
from drone_kd_training.distillation.few_labels_arms import FEW
from drone_kd_training.distillation.few_labels_figures import compared
from drone_kd_training.distillation.paired_comparison import SUBSET
from few_labels_runs import ROWS, row, rows_of


def test_arms_are_paired_with_few_by_subset():
    found = {arm.arm: arm for arm in summarise(compared(ROWS, 5), 0.62, FEW, SUBSET)}
    assert set(found) == {row["arm"] for row in ROWS}
    few, ours = found["few"], found["ours"]
    assert (few.units, few.gain, few.gap_share, few.time_ratio) == (3, None, None, 1)
    assert few.mean == pytest.approx(0.42) and few.map50 == pytest.approx(0.62)
    assert ours.units == 3  # not those with other labels
    assert ours.gain == pytest.approx(0.10)
    # 0.10 +- t(0.975, 2) * 0.02 / sqrt(3)
    assert ours.gain_interval == pytest.approx((0.10 - 0.04968, 0.10 + 0.04968), abs=1e-4)
    assert ours.gap_share == pytest.approx(0.10 / 0.20)
    assert ours.time_ratio == pytest.approx(1.5)
    assert found["few:50"].steps == 50
    assert found["all"].gain == pytest.approx(0.08)
    assert summarise(compared(ROWS, 5), 0.44, FEW, SUBSET)[-1].gap_share is None  # of 2 points


def test_seeds_of_one_subset_count_once():
    again = [row | {"map50_95": row["map50_95"] + 0.02} for row in ROWS if row["arm"] == "ours"]
    found = summarise(compared(ROWS + again, 5), 0.62, FEW, SUBSET)
    ours = next(arm for arm in found if arm.arm == "ours")
    assert ours.units == 3
    assert ours.gain == pytest.approx(0.11)
    assert ours.gain_interval == pytest.approx((0.11 - 0.04968, 0.11 + 0.04968), abs=1e-4)


def test_run_without_a_score_is_not_zero():
    rows = [*rows_of("few", (0.4, 0.4)), row("ours", 0, 0.5), row("ours", 1, 0.5)]
    rows[-1] |= {"map50_95": None, "map50": None}
    ours = summarise(rows, 0.9, FEW, SUBSET)[1]
    assert (ours.units, ours.mean, ours.map50) == (1, 0.5, pytest.approx(0.7))
    assert ours.gain == pytest.approx(0.1)
    rows[-2] |= {"map50_95": None, "map50": None}
    none = summarise(rows, 0.9, FEW, SUBSET)
    assert (none[1].units, none[1].mean, none[1].gain) == (0, None, None)
    teacher = {"map50_95": 0.9, "map50": None}
    assert arm_table(teacher, none, FEW, SUBSET)[-1] == "| ours | 0 | 100 | - | - |  |  | 1.00 |"


def test_fiellers_interval_without_scatter_below_is_students():
    # 0.10 +- 0.04968, by 0.2
    found = ratio_interval([0.08, 0.10, 0.12], [0.2, 0.2, 0.2])
    assert found == pytest.approx((0.2516, 0.7484), abs=1e-3)
    assert ratio_interval([0.1], [0.2]) is None
    assert ratio_interval([0.1, 0.1, 0.1], [0.2, -0.2, 0.1]) is None  # the ratio has no limits


def test_fiellers_interval_covers_the_ratio_in_19_of_20_cases():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        below = rng.normal(0.2, 0.03, 5)
        above = 0.6 * below + rng.normal(0, 0.02, 5)
        low, high = ratio_interval(above, below)
        covered += low <= 0.6 <= high
    assert 0.93 < covered / 2000 < 0.97
