import numpy as np
import pytest

from drone_kd_training.teachers.fusion import count_right, fuse, translate
from drone_kd_training.teachers.teaching_plan import Teacher

NAMES = ("person", "car")


def teacher(**changes) -> Teacher:
    values = {
        "name": "t",
        "weights": None,
        "names": ("human", "auto", "van", "tree"),
        "sources": ("a", "b"),
        "classes": {"human": "person", "auto": "car", "van": "car"},
        "pseudo_threshold": {"person": 0.6, "car": 0.4},
        "pseudo_threshold_on": {"b": {"person": 0.9}},
    }
    return Teacher(**{**values, **changes})


def rows(*values: tuple) -> np.ndarray:
    return np.array(values, np.float32).reshape(-1, 6)


def test_merged_classes_leave_one_box_and_unmapped_ones_are_dropped():
    box = (0.1, 0.1, 0.3, 0.3)
    table = rows((*box, 0.5, 1), (*box, 0.8, 2), (0.5, 0.5, 0.6, 0.6, 0.9, 3))
    found = translate(table, teacher(), "a", NAMES)
    assert len(found) == 1 and found[0, 5] == 1


def test_threshold_becomes_the_edge_of_the_ignore_band():
    table = rows(*((i / 10, 0, i / 10 + 0.05, 0.1, s, 0) for i, s in enumerate((0.3, 0.6, 0.8))))
    scores = sorted(translate(table, teacher(), "a", NAMES)[:, 4].tolist())
    assert scores == pytest.approx([0.3, 0.6, 0.8])
    stricter = sorted(translate(table, teacher(), "b", NAMES)[:, 4].tolist())
    assert stricter == pytest.approx([0.2, 0.4, 0.5333], abs=1e-3) and stricter[-1] < 0.6
    cars = rows((0, 0, 0.1, 0.1, 0.4, 1), (0.5, 0.5, 0.6, 0.6, 1.0, 1))
    rescaled = translate(cars, teacher(), "a", NAMES)[:, 4]
    assert sorted(rescaled.tolist()) == pytest.approx([0.6, 1.0])


def test_fused_box_is_nearer_to_the_teacher_with_the_larger_weight():
    left, right = rows((0.1, 0.1, 0.3, 0.3, 0.8, 0)), rows((0.14, 0.1, 0.34, 0.3, 0.8, 0))
    found = fuse([left, right], [np.array([0.9, 0]), np.array([0.3, 0])])
    assert len(found) == 1
    assert found[0, 0] == pytest.approx(0.11, abs=1e-3)  # three quarters of the way to the left
    assert found[0, 4] == pytest.approx(0.8, abs=1e-3)


def test_score_of_a_lone_box_is_scaled_by_its_teachers_weight():
    alone = rows((0.1, 0.1, 0.3, 0.3, 0.8, 0))
    weights = [np.array([0.9, 1.0]), np.array([0.45, 0.0])]
    assert fuse([alone, rows()], weights)[0, 4] == pytest.approx(0.8)
    assert fuse([rows(), alone], weights)[0, 4] == pytest.approx(0.4)
    # A class that only one teacher knows keeps its score.
    car = rows((0.1, 0.1, 0.3, 0.3, 0.8, 1))
    assert fuse([car, rows()], weights)[0].tolist() == pytest.approx(car[0].tolist())
    assert fuse([rows(), rows()], weights).shape == (0, 6) == fuse([], []).shape


def test_count_right_matches_each_label_once():
    truth = np.array([[0, 0, 0.2, 0.2, 0], [0.5, 0.5, 0.7, 0.7, 1]])
    table = rows(
        (0, 0, 0.2, 0.21, 0.9, 0),
        (0, 0, 0.21, 0.2, 0.8, 0),  # the same label is not taken twice
        (0.8, 0.8, 0.9, 0.9, 0.3, 0),  # below the threshold
        (0.5, 0.5, 0.7, 0.7, 0.9, 0),  # of another class
    )
    assert count_right(table, truth, 0) == (1, 3)
    assert count_right(table, truth, 1) == (0, 0)
    assert count_right(table, truth, 0, 0.2) == (1, 4)
