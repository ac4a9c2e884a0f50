"""Tables and plot of made-up runs."""

import json
from dataclasses import replace

import pytest

from drone_kd.media.image_files import read_image
from drone_kd_training.distillation.compare import SCORES
from drone_kd_training.distillation.experiment_plan import Plan
from drone_kd_training.distillation.few_labels_figures import learning_curve
from drone_kd_training.distillation.few_labels_report import plot_learning_curve, write_tables
from drone_kd_training.distillation.paired_comparison import Primary

TEACHER = {
    "map50_95": 0.6,
    "map50": 0.8,
    "at_teacher_imgsz": None,
    "parameters": 9_100_000,
    "imgsz": 320,
    "per_class": {"car": {"ap50_95": 0.6}},
    "classes_not_in_model": ["person"],
}
PLAN = Plan(("few", "ours"), (0, 1), (5, 0), "100 steps")
PRIMARY = Primary("ours", "hard:0.3", plan=replace(PLAN, arms=("few", "ours", "hard:0.3")))


def row(arm: str, subset: int, score: float, labels: int = 5) -> dict:
    row = {"arm": arm, "subset": subset, "labels": labels, "steps": 100}
    return (
        row
        | {"seed": subset}
        | dict.fromkeys(SCORES, score)
        | {"seconds": 10.0, "parameters": 3_010_000}
    )


ROWS = [
    *(row("few", 0, 0.40), row("few", 1, 0.42), row("ours", 0, 0.50), row("ours", 1, 0.51)),
    *(row("hard:0.3", 0, 0.45), row("hard:0.3", 1, 0.47), row("ours", 0, 0.3, labels=0)),
]


def test_tables_hold_every_finished_run(tmp_path):
    content = write_tables(tmp_path, TEACHER, PRIMARY, ROWS, PLAN)
    assert json.loads((tmp_path / "metrics.json").read_text())["runs"] == ROWS == content["runs"]
    assert list(content["arms"]) == ["few", "ours", "hard:0.3"]
    lines = (tmp_path / "compare.csv").read_text().splitlines()
    assert lines[0].startswith("arm,subset,labels,steps,seed,map50_95,map50,ap_tiny")
    assert lines[0].endswith("seconds,parameters")
    assert content["primary"]["difference"]["mean"] == pytest.approx(0.045)
    assert content["primary"]["named"]["other"] == "hard:0.3"
    assert len(lines) == 1 + len(ROWS)
    text = (tmp_path / "compare.md").read_text()
    assert "| teacher | | | 60.0 | 80.0 | | | |" in text
    assert text.splitlines()[0] == (
        "Primary: ours - hard:0.3 = +4.5 points [-1.9, +10.9], n = 2 subsets, "
        "mAP50-95 on 1 class (car), 320 px; NOT AS PLANNED: runs missing: 0 labels seed 1"
    )
    assert "| ours | 2 | 100 | 50.5 ± 0.7 | 50.5 | +9.5 | 50 % | 1.00 |" in text
    assert "| +5.0 | 26 % [16, 79] | 1.00 |" in text
    assert "| ours - few | +9.5 [+3.1, +15.9] | 2 | 0.033 | student alone |" in text
    assert "Teacher 9.1 M parameters, student 3.0 M; both measured at 320 px." in text
    assert "Classes that count for no model: person (not a class of the teacher)." in text
    assert "They do not cover other data or other teachers." in text
    assert "| 0 |  | 30.0 |" in text


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]])
def test_the_curve_is_an_image(rows, tmp_path):
    plot_learning_curve(learning_curve(rows), 0.6, tmp_path / "curve.png")
    assert read_image(tmp_path / "curve.png").std() > 0


def test_a_larger_input_of_the_teacher_has_its_own_row(tmp_path):
    large = {"map50_95": 0.7, "imgsz": 640}
    write_tables(tmp_path, TEACHER | {"at_teacher_imgsz": large}, PRIMARY, ROWS[:1], PLAN)
    text = (tmp_path / "compare.md").read_text()
    assert "| teacher at 640 px | | | 70.0 |" in text
    assert "± 0" not in text  # one run has no scatter
