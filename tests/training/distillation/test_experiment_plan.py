"""What a plan makes visible, on made-up runs."""

import json
from dataclasses import asdict, replace

import pytest

from drone_kd_training.distillation.experiment_plan import (
    Plan,
    deviations,
    length_text,
    read_plan,
    unscored,
)

PLAN = Plan(("few", "ours"), (0, 1), (0, 5, 25), "100 steps")


def runs(arm: str, *seeds: int, score: float | None = 0.5) -> list[dict]:
    return [{"arm": arm, "seed": seed, "map50_95": score} for seed in seeds]


AS_PLANNED = [*runs("few", 0, 1), *runs("ours", 0, 1)]


def test_what_is_as_planned_has_no_deviation():
    assert deviations(PLAN, PLAN, AS_PLANNED, ("ours", "few")) == []
    assert PLAN.compared_labels == 5


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (runs("few", 2) + runs("ours", 2), ["seeds planned: 2, ran: 3", "seeds added later: 2"]),
        (runs("few", 2), []),  # no pair
        (runs("all", 0), ["arms added later: all"]),
    ],
)
def test_runs_that_are_added_are_named(rows, says):
    assert deviations(PLAN, PLAN, AS_PLANNED + rows, ("ours", "few")) == says


def test_runs_that_are_left_out_are_named():
    assert deviations(PLAN, PLAN, AS_PLANNED[:3], ("ours", "few")) == [
        "seeds planned: 2, ran: 1",
        "seeds missing: 1",
    ]
    assert deviations(PLAN, PLAN, runs("few", 0, 1), ()) == ["arms missing: ours"]
    third = replace(PLAN, arms=("few", "ours", "hard:0.4"))  # a secondary arm
    assert deviations(third, third, [*AS_PLANNED, *runs("hard:0.4", 1)], ("ours", "few")) == [
        "runs missing: hard:0.4 seed 0"
    ]


def test_all_numbers_of_labels_count():
    def at(labels, *rows):
        return [{**row, "labels": labels} for row in rows]

    planned = [
        *(*at(5, *AS_PLANNED), *at(25, *AS_PLANNED), *at(0, *runs("ours", 0, 1))),
        *at(100, *runs("all", 0, 1)),
    ]
    arms = ("ours", "few")
    assert deviations(PLAN, PLAN, AS_PLANNED, arms, planned) == []
    assert deviations(PLAN, PLAN, AS_PLANNED, arms, at(5, *AS_PLANNED)) == [
        "labels missing: 0, 25"
    ]
    without = [row for row in planned if row != {**runs("few", 1)[0], "labels": 25}]
    assert deviations(PLAN, PLAN, AS_PLANNED, arms, without) == ["runs missing: 25 labels seed 1"]
    # Added by an earlier call.
    assert deviations(PLAN, PLAN, AS_PLANNED, arms, [*planned, *at(50, *AS_PLANNED)]) == [
        "labels added later: 50"
    ]


def test_other_labels_and_lengths_are_named():
    now = replace(PLAN, labels=(10, 5), length="200 steps")
    assert deviations(PLAN, now, AS_PLANNED, ()) == [
        "labels added later: 10",
        "10 labels in place of 5",
        "200 steps in place of 100 steps",
    ]


def test_run_without_a_score_is_no_seed_that_ran():
    rows = [*AS_PLANNED[:3], *runs("ours", 1, score=None)]
    assert "seeds planned: 2, ran: 1" in deviations(PLAN, PLAN, rows, ("ours", "few"))
    assert unscored(rows) == ["ours seed 1"]


def test_many_deviations_stay_short():
    text = deviations(PLAN, PLAN, AS_PLANNED + runs("few", *range(2, 90)), ())[1]
    assert text == "seeds added later: 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13 and 76 more"


def test_plan_is_read_as_it_was_written():
    content = json.loads(json.dumps(asdict(PLAN)))
    assert read_plan(content) == PLAN
    for other in ({}, [], None, {**content, "seeds": ["0"]}, {**content, "length": 1}):
        assert read_plan(other) is None


def test_steps_count_before_epochs():
    assert (length_text(10, 0), length_text(10, 300)) == ("10 epochs", "300 steps")
