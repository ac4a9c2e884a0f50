import json

import numpy as np
import pytest

from drone_kd_training.teachers.pseudo_labels import Thresholds, choose_thresholds, expect
from drone_kd_training.teachers.teacher_scores import Scores, TeacherScores


def scores(right=(), wrong=(), labels: int | None = None, unlabelled=(0.9,), frames: int = 5):
    """Return scores of a class with right and wrong boxes on the labelled frames."""
    found = np.concatenate([right, wrong]).astype(np.float32)
    order = np.argsort(-found, kind="stable")
    return Scores(
        labels=len(right) if labels is None else labels,
        frames=frames,
        labelled=found[order],
        right=(np.arange(len(found)) < len(right))[order],
        unlabelled=np.array(unlabelled, np.float32),
    )


def teacher(*classes: Scores | None, names=("car", "person"), labelled=(5, 5), unlabelled=(4, 10)):
    return TeacherScores(names[: len(classes)], classes, labelled, unlabelled)


def test_threshold_separates_objects_from_errors_class_by_class():
    high = scores(np.linspace(0.7, 0.9, 200), np.linspace(0.1, 0.6, 200))
    low = scores(np.linspace(0.2, 0.3, 200), np.linspace(0.05, 0.12, 200))
    first, second = choose_thresholds(teacher(high, low)).high
    assert 0.6 < first <= 0.7
    assert 0.12 < second <= 0.2


@pytest.mark.parametrize(("labels", "expected"), [(9, 0.35), (10, 0.61)])
def test_few_labels_choose_no_threshold(labels, expected):
    thresholds = choose_thresholds(
        teacher(scores(np.full(labels, 0.7), np.full(3 * labels, 0.605)))
    )
    assert thresholds.high == (pytest.approx(expected),)


def test_small_gain_in_f1_moves_the_threshold_only_with_many_labels():
    def chosen(repeat: int) -> float:
        # A threshold of 0.55 leaves out one of 12 wrong boxes: F1 0.784 instead of 0.769.
        right, wrong = np.full(20, 0.8), np.array([0.545, *np.full(11, 0.85)])
        return choose_thresholds(
            teacher(scores(np.repeat(right, repeat), np.repeat(wrong, repeat)))
        ).high[0]

    assert chosen(1) == pytest.approx(0.35)
    assert chosen(20) == pytest.approx(0.55)


@pytest.mark.parametrize(
    ("right", "wrong", "expected"), [(0.105, 0.09, 0.1), (0.95, 0.795, 0.8), (0.95, 0.9, 0.35)]
)
def test_threshold_stays_within_its_bounds(right, wrong, expected):
    found = choose_thresholds(teacher(scores(np.full(1_000, right), np.full(1_000, wrong))))
    assert found.high[0] == pytest.approx(expected)


def test_scores_equal_to_the_threshold_are_pseudo_labels():
    # 0.7 is another number in float32.
    found = teacher(scores(np.full(1_000, 0.7), np.full(1_000, 0.695), unlabelled=[0.7]))
    thresholds = choose_thresholds(found)
    assert thresholds.high == (0.7,)
    assert expect(found, thresholds).classes[0].right == 1_000


def test_ignore_region_begins_at_a_fixed_score():
    for right in (np.full(1_000, 0.9), np.full(1_000, 0.15), []):
        assert choose_thresholds(teacher(scores(right, [0.3], labels=1_000))).low == (0.1,)


def test_expectation_counts_and_scales():
    car = scores(
        [0.9, 0.8, 0.4], [0.7, 0.2], labels=12, unlabelled=[0.9, 0.6, 0.5, 0.3, 0.2, 0.05]
    )
    (row,) = expect(teacher(car), Thresholds((0.5,), (0.2,))).classes
    assert (row.right, row.predicted, row.labels, row.frames) == (2, 3, 12, 5)
    assert row.precision == pytest.approx(2 / 3, abs=1e-4)
    assert row.recall == pytest.approx(2 / 12, abs=1e-4)
    assert row.pseudo_labels == round(3 * 10 / 4)
    assert row.ignored == pytest.approx(2 / 6, abs=1e-4)


def test_table_and_dict_say_the_same():
    found = teacher(scores(np.full(1_724, 0.8), np.full(100, 0.7)), scores([0.9], [0.8]))
    expectation = expect(found, choose_thresholds(found))
    header, car, person, note, _, frames = expectation.table().splitlines()
    assert header.split() == ["class", "frames", "threshold", "precision", "recall",
                              "pseudo-labels", "ignored"]  # fmt: skip
    assert "1724/1724" in car
    assert "0.35*" in person
    assert "0.50 (1/2)" in person
    assert note == "* default: fewer than 10 labels"
    assert frames == "Measured on 5 labelled frames and 4 of 10 unlabelled frames"
    content = json.loads(json.dumps(expectation.as_dict()))
    assert content["classes"]["person"]["chosen"] is False
    assert content["classes"]["car"]["right"] == 1_724
    assert content["frames"]["unlabelled"] == {"read": 4, "all": 10}


def test_table_of_long_names_and_many_labels_fits_a_terminal():
    found = teacher(
        scores(np.full(50_000, 0.8), np.full(40_000, 0.5), unlabelled=np.full(100_000, 0.9)),
        names=("\x1b[31mawning-tricycle of the second kind",),
        unlabelled=(200, 2_000_000),
    )
    table = expect(found, choose_thresholds(found)).table()
    assert max(map(len, table.splitlines())) <= 100
    assert "\x1b" not in table


def test_without_labels_the_defaults_are_used():
    found = teacher(scores(labels=0, frames=0), scores(labels=0, frames=0), labelled=(0, 0))
    thresholds = choose_thresholds(found)
    assert thresholds == Thresholds((0.35, 0.35), (0.1, 0.1))
    expectation = expect(found, thresholds)
    assert "* default: no labels to check against" in expectation.table()
    assert "Measured on 4 of 10 unlabelled frames" in expectation.table()
    assert expectation.warnings == ()
    assert expectation.classes[0].recall is None


def test_warning_of_a_class_that_the_teacher_misses():
    found = teacher(scores([0.9, 0.8, 0.1, 0.09], labels=40), scores(np.full(20, 0.9)))
    (warning,) = expect(found, choose_thresholds(found)).warnings
    assert warning == (
        "the teacher's predictions look wrong on the labelled frames: car: finds 3 of 40; check "
        "classes, imgsz, tile"
    )


def test_a_missed_label_or_two_are_no_warning():
    found = teacher(scores(labels=2))
    assert expect(found, choose_thresholds(found)).warnings == ()


def test_warnings_of_classes_without_labels_teacher_or_pseudo_labels():
    found = teacher(
        None,
        scores(labels=0, frames=0),
        scores(np.full(20, 0.9), np.full(20, 0.75), unlabelled=[0.3]),
        names=("boat", "bus", "car\n"),
    )
    expectation = expect(found, choose_thresholds(found))
    assert [c.name for c in expectation.classes] == ["bus", "car\n"]
    assert expectation.warnings == (
        "boat: unknown to the teacher; masked on unlabelled frames",
        "bus: no label in 5 labelled frames; default threshold",
        "car: no pseudo-label with a score ≥ 0.76 in 4 unlabelled frames",
    )
