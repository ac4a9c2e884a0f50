"""Primary and secondary comparisons of made-up runs."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from drone_kd_training.distillation.experiment_plan import Plan
from drone_kd_training.distillation.few_labels_figures import differences
from drone_kd_training.distillation.paired_comparison import (
    SEED,
    SUBSET,
    Primary,
    best_difference,
    difference,
    distinct,
    holm,
    interval,
    mean_by_unit,
    name_primary,
    p_value,
)

PLAN = Plan(("ours", "hard:0.4"), (0, 1, 2), (5,), "100 steps")
OURS = Primary("ours", "hard:0.4", plan=PLAN)


def runs(arm, scores, seeds=1) -> list[dict]:
    """Rows of an arm, of one subset after the other, with so many seeds each."""
    return [
        {"arm": arm, "subset": i // seeds, "seed": i, "map50_95": score}
        for i, score in enumerate(scores)
    ]


def test_seeds_of_one_subset_are_averaged_and_count_once():
    rows = [*runs("ours", (0.5, 0.7, 0.4, 0.4), seeds=2), *runs("hard:0.4", (0.5, 0.3))]
    assert mean_by_unit(rows, "ours", SUBSET) == pytest.approx({0: 0.6, 1: 0.4})
    found = difference(rows, "ours", "hard:0.4", SUBSET)
    assert found.units == 2 and found.mean == pytest.approx(0.1)
    assert found.interval == pytest.approx((0.1, 0.1))
    assert mean_by_unit(rows, "ours", SEED) == pytest.approx({0: 0.5, 1: 0.7, 2: 0.4, 3: 0.4})


def test_runs_without_a_pair_do_not_count():
    rows = [*runs("ours", (0.5, 0.6, 0.7)), *runs("few", (0.4,))]
    assert difference(rows, "ours", "few", SUBSET).units == 1
    assert difference(rows, "ours", "few", SUBSET).interval is None
    assert difference(rows, "ours", "all", SUBSET) is None


def test_interval_and_p_are_students():
    gains = [0.01, 0.03, 0.02, 0.05]
    expected = stats.ttest_1samp(gains, 0)
    assert p_value(gains) == pytest.approx(expected.pvalue)
    assert interval(gains) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert interval([0.1]) is None and p_value([0.1]) is None
    assert (p_value([0.0, 0.0]), p_value([0.5, 0.5])) == (1, 0)


def test_holm_multiplies_by_the_number_of_comparisons_that_are_left():
    # Holm 1979: 4 x 0.01, 3 x 0.012, 2 x 0.03, 1 x 0.04, never falling, at most 1.
    assert holm([0.03, 0.01, 0.04, 0.012]) == pytest.approx([0.06, 0.04, 0.06, 0.04])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []


def finish(output, count):
    for number in range(count):
        folder = output / "runs" / str(number)
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
        (folder / "metrics.json").touch()


def test_the_primary_comparison_stays_as_named_before_the_runs(tmp_path):
    assert name_primary(tmp_path, ["ours"], "hard:0.4", 0.0, PLAN) == OURS
    later = replace(PLAN, seeds=(0, 1, 2, 3, 4))
    # Another process, which starts at the same time: there is no run yet.
    assert name_primary(tmp_path, ["ours"], "hard:0.3", 0.0, later) == OURS
    finish(tmp_path, 3)
    assert name_primary(tmp_path, ["ours;beta=1"], "hard:0.5", 0.0, later) == OURS
    assert json.loads((tmp_path / "primary.json").read_text())["other"] == "hard:0.4"
    with pytest.raises(ValueError, match="another select: choose another --output"):
        name_primary(tmp_path, ["ours"], "hard:0.4", 0.2, PLAN)


def test_an_experiment_of_an_earlier_version_has_no_primary_comparison(tmp_path):
    finish(tmp_path, 3)
    named = name_primary(tmp_path, ["ours"], "hard:0.4", 0.0, PLAN)
    assert named.plan is None  # it would be one after the runs
    assert named.runs_before == 3 and "after 3 runs" in named.refusal
    assert name_primary(tmp_path, ["ours"], "hard:0.4", 0.0, PLAN) == named


def test_an_experiment_of_a_version_without_a_plan_continues(tmp_path):
    name_primary(tmp_path, ["ours"], "hard:0.4", 0.0, PLAN)
    finish(tmp_path, 1)
    path = tmp_path / "primary.json"
    content = json.loads(path.read_text())
    del content["plan"]
    path.write_text(json.dumps(content))
    assert name_primary(tmp_path, ["ours"], "hard:0.4", 0.0, PLAN) == replace(OURS, plan=None)


def test_one_variant_of_ours_may_be_primary_and_several_may_not(tmp_path):
    one, two = tmp_path / "1", tmp_path / "2"
    assert name_primary(one, ["ours;beta=1"], "few", 0.0, PLAN).arm == "ours;beta=1"
    assert name_primary(two, ["ours;beta=1", "ours;beta=2"], "few", 0.0, PLAN).arm is None


@pytest.mark.parametrize(
    "content",
    [
        *("[]", "{}", '{"arm": 1, "other": "few", "runs_before": 0, "select": 0}'),
        '{"arm": "ours", "other": "few", "runs_before": 0, "select": 0, "plan": {"seeds": [1]}}',
    ],
)
def test_another_primary_file_is_one_line(content, tmp_path):
    finish(tmp_path, 1)
    (tmp_path / "primary.json").write_text(content)
    with pytest.raises(ValueError, match="expected a primary comparison") as error:
        name_primary(tmp_path, ["ours"], "few", 0.0, PLAN)
    assert "\n" not in str(error.value)


def test_equal_settings_are_one_arm(capsys):
    arms = {"few:9": 1, "few": 1, "ours": 2, "ours;beta=0": 2, "all": 3}
    assert distinct(arms, ("few", "ours")) == ["few", "ours", "all"]
    assert capsys.readouterr().out.splitlines() == [
        "few:9 is the same run as few: left out",
        "ours;beta=0 is the same run as ours: left out",
    ]


def simulated(rng, subsets=5, seeds=2) -> list[dict]:
    """Runs of equal arms: a subset's labels, an arm's luck with them, and each seed scatter."""
    arms = ("ours", "hard:0.4", "hard:0.3", "few", "builtin:1", "all", "ours;beta=1")
    rows = []
    for subset in range(subsets):
        level = rng.normal(0.4, 0.05)
        for arm in arms:
            luck = rng.normal(0, 0.02)
            rows += [
                {"arm": arm, "subset": subset, "map50_95": level + luck + rng.normal(0, 0.01)}
                for _ in range(seeds)
            ]
    return rows


@pytest.mark.slow
def test_equal_arms_differ_in_one_of_twenty_experiments():
    """5 % of 400 are 20, with a standard deviation of 4.4."""
    rng = np.random.default_rng(0)
    primary = family = dependent = 0
    for _ in range(400):
        rows = simulated(rng)
        low, high = difference(rows, "ours", "hard:0.4", SUBSET).interval
        primary += not low <= 0 <= high
        family += min(item.p for item in differences(rows, OURS)) <= 0.05
        runs = [{**row, "subset": number} for number, row in enumerate(rows)]
        for number, row in enumerate(runs):  # each seed as if it were a subset of its own
            row["subset"] = (rows[number]["subset"], number % 2)
        low, high = difference(runs, "ours", "hard:0.4", SUBSET).interval
        dependent += not low <= 0 <= high
    assert 5 <= primary <= 40
    assert family <= 40
    assert dependent > 60  # what counting the runs of one subset as independent would do


def test_best_of_others_is_the_best_on_the_units_of_ours():
    elsewhere_better = runs("hard:0.3", (0.2, 0.2, 0.9, 0.9, 0.9))
    rows = [*runs("ours", (0.5, 0.5)), *elsewhere_better, *runs("hard:0.5", (0.4, 0.4))]
    found = best_difference(rows, "ours", ["hard:0.3", "hard:0.5"], SUBSET, "")
    assert (found.other, found.candidates) == ("hard:0.5", 2)
