"""Figures of made-up runs with known answers."""

import pytest

from drone_kd_training.distillation.few_labels_figures import (
    compared,
    differences,
    learning_curve,
)
from drone_kd_training.distillation.paired_comparison import Primary, p_value
from few_labels_runs import ROWS, rows_of


def test_seeds_of_one_subset_count_once():
    again = [row | {"map50_95": row["map50_95"] + 0.02} for row in ROWS if row["arm"] == "ours"]
    points = learning_curve(ROWS + again)
    assert points[0].ours == pytest.approx(0.53)
    assert points[0].ours_interval == pytest.approx((0.53 - 0.04968, 0.53 + 0.04968), abs=1e-4)


PRIMARY = Primary("ours", "hard:0.3")


def test_secondary_comparisons_are_with_the_best_of_each_kind():
    found = differences(compared(ROWS, 5), PRIMARY)
    assert [(d.role, d.other, d.candidates) for d in found] == [
        ("student alone", "few", 1),
        ("student alone at its best length", "few:50", 2),
        ("hard pseudo-labels", "hard:0.4", 2),
        ("built-in distillation", "builtin-hard:1", 2),
        ("student alone with all labels", "all", 1),
        ("", "ours;beta=1", 1),
    ]
    assert {d.arm for d in found} == {"ours"}
    few, _, hard, _, every, changed = found
    assert (hard.mean, hard.units) == (pytest.approx(0.04), 3)
    assert changed.interval == pytest.approx((0.01, 0.01))
    assert every.mean == pytest.approx(0.02)
    # Six comparisons, of which those with constant differences have smaller p values.
    p = p_value([0.10, 0.08, 0.12])
    assert few.p == pytest.approx(max(few.p, 3 * p)) and few.p > p
    without = [row for row in ROWS if row["arm"] != "few:50"]
    assert [d.role for d in differences(compared(without, 5), PRIMARY)][:2] == [
        *("student alone", "hard pseudo-labels")
    ]


def test_the_primary_comparison_is_not_repeated():
    found = differences(compared(ROWS, 5), Primary("ours", "hard:0.4"))
    assert "hard:0.4" not in {d.other for d in found}


def test_a_variant_of_ours_may_be_the_arm_that_is_compared():
    found = differences(compared(ROWS, 5), Primary("ours;beta=1", "hard:0.3"))
    assert {d.arm for d in found} == {"ours;beta=1"}
    assert found[-1].other == "ours"
    variants = differences(compared(ROWS, 5), Primary(None, "hard:0.3"))
    assert [(d.arm, d.other) for d in variants] == [
        *(("ours", "hard:0.3"), ("ours;beta=1", "hard:0.3"))
    ]


def test_learning_curve_has_few_and_ours_at_each_number_of_labels():
    points = learning_curve([*ROWS, *rows_of("ours", (0.3,), labels=0)])
    assert [(p.labels, p.few, p.ours) for p in points] == [
        (0, None, pytest.approx(0.3)),
        (5, pytest.approx(0.42), pytest.approx(0.52)),
        (25, pytest.approx(0.47), None),
        (50, pytest.approx(0.50), pytest.approx(0.55)),
    ]
    assert points[0].ours_interval is None and points[2].few_interval is not None
