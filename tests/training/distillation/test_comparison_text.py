"""Lines and tables of made-up runs."""

from dataclasses import replace

from drone_kd_training.distillation.comparison_text import (
    measured_lines,
    primary_line,
    secondary_table,
    signed,
)
from drone_kd_training.distillation.experiment_plan import Plan
from drone_kd_training.distillation.paired_comparison import (
    SEED,
    SUBSET,
    Primary,
    best_difference,
    difference,
    secondary,
)

TEACHER = {
    "parameters": 9_100_000,
    "imgsz": 320,
    "per_class": {"car": {"ap50_95": 0.6}},
    "classes_not_in_model": [],
}
OURS = Primary("ours", "hard:0.4")


def runs(arm, scores, seeds=1) -> list[dict]:
    """Rows of an arm, of one subset after the other, with so many seeds each."""
    return [
        {"arm": arm, "subset": i // seeds, "seed": i, "map50_95": score}
        for i, score in enumerate(scores)
    ]


def test_the_best_of_several_says_so():
    rows = [
        *(*runs("ours", (0.5, 0.6)), *runs("hard:0.4", (0.3, 0.3)), *runs("hard:0.3", (0.4, 0.4))),
        *(*runs("hard:0.5", (0.9,)), *runs("few", (0.2, 0.2))),
    ]
    hard = ["hard:0.4", "hard:0.3", "hard:0.5", "hard:0.6"]
    best = best_difference(rows, "ours", hard, SUBSET, "hard pseudo-labels")
    assert (best.other, best.candidates) == ("hard:0.3", 3)  # 0.5 has fewer subsets
    only = best_difference(rows, "ours", ["few"], SUBSET, "student alone")
    assert only.candidates == 1
    assert best_difference(rows, "ours", ["all"], SUBSET, "") is None
    table = "\n".join(secondary_table([best, only], SUBSET))
    assert "| hard pseudo-labels; best of 3 on this split, in its favour |" in table
    assert "| ours - few | +35.0 [" in table and "| student alone |" in table
    assert secondary_table([], SUBSET) == []


def test_the_primary_comparison_is_one_line():
    rows = [
        *runs("ours", (0.52, 0.50, 0.54)),
        *runs("hard:0.4", (0.50, 0.49, 0.51)),
        *runs("few", (0.3, 0.3, 0.3)),
    ]
    assert primary_line(rows, OURS, SUBSET, TEACHER) == (
        "Primary: ours - hard:0.4 = +2.0 points [-0.5, +4.5], n = 3 subsets, "
        "mAP50-95 on 1 class (car), 320 px"
    )
    two = {**TEACHER, "per_class": {"car": {"ap50_95": 0.6}, "bus": {"ap50_95": 0.1}}}
    one = primary_line(rows[:1] + rows[3:], OURS, SEED, two)
    assert "+2.0 points, n = 1 seed, mAP50-95 on 2 classes (car, bus)" in one
    chosen = primary_line(rows, Primary("ours", "few", select=0.2), SUBSET, TEACHER)
    assert chosen.endswith("320 px, on 20 % of train, for choosing settings")
    assert primary_line(rows[3:], OURS, SUBSET, TEACHER) == (
        "Primary: ours - hard:0.4, no pair of runs yet"
    )


def test_the_line_says_what_is_not_as_planned():
    rows = [*runs("ours", (0.52, 0.50)), *runs("hard:0.4", (0.50, 0.49, 0.51))]
    plan = Plan(("ours", "hard:0.4"), (0, 1), (5,), "100 steps")
    as_planned = primary_line(rows, replace(OURS, plan=plan), SUBSET, TEACHER, plan)
    assert as_planned.endswith("320 px")
    three = replace(OURS, plan=replace(plan, seeds=(0, 1, 2)))
    assert primary_line(rows, three, SUBSET, TEACHER, plan).endswith(
        "320 px; NOT AS PLANNED: seeds planned: 3, ran: 2, seeds missing: 2"
    )
    old = primary_line(rows, OURS, SUBSET, TEACHER, plan)
    assert old.endswith("; no plan of seeds and arms was stored before the first run")


def test_no_difference_has_no_sign_of_its_own():
    assert [signed(x) for x in (-0.0001, 0.0, 0.0213, -0.004)] == ["+0.0", "+0.0", "+2.1", "-0.4"]


def test_what_was_not_named_before_the_runs_is_not_primary():
    rows = [*runs("ours", (0.52, 0.50)), *runs("hard:0.4", (0.50, 0.49))]
    late = Primary("ours", "hard:0.4", runs_before=12)
    assert primary_line(rows, late, SUBSET, TEACHER).startswith(
        "No primary comparison (named after 12 runs: confirm it on data not yet measured): ours"
    )
    found = [difference(rows, "ours", "hard:0.4", SUBSET)]
    assert secondary(found, OURS) == []
    assert secondary(found, late) == found  # then it is corrected as any other
    several = primary_line(rows, Primary(None, "few"), SUBSET, TEACHER)
    assert several.startswith("No primary comparison (several variants of ours")


def test_sizes_and_classes_are_stated():
    assert measured_lines(TEACHER, [3_000_000, 3_000_000]) == [
        "Teacher 9.1 M parameters, student 3.0 M; both measured at 320 px."
    ]
    other = {
        "at_teacher_imgsz": {"imgsz": 640},
        "per_class": {"car": {"ap50_95": 0.6}, "bus": {"ap50_95": None}},
        "classes_not_in_model": ["person"],
    }
    first, second = measured_lines(TEACHER | other, [])
    assert first.endswith("both measured at 320 px; the teacher teaches at 640 px.")
    assert second == (
        "Classes that count for no model: person (not a class of the teacher); bus (no object)."
    )
