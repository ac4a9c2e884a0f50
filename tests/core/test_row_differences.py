"""Matching of output rows by content."""

import numpy as np
import pytest

from drone_kd.core.row_differences import row_differences


def test_reordered_rows_are_matched_by_content():
    a = np.array(
        [[0, 0, 9, 9, 0.5, 0], [0, 0, 9, 9, 0.5, 1], [50, 50, 90, 90, 0.4, 1]], np.float32
    )
    box, score = row_differences(a, a[::-1])
    assert box.max() == 0
    assert score.max() == 0
    moved = a + np.array([0, 0, 2, 0, 0.1, 0], np.float32)
    box, score = row_differences(a, moved[::-1])
    assert box.tolist() == [2, 2, 2]
    assert score == pytest.approx(0.1)
    assert np.isinf(row_differences(a, a[:1])[0]).tolist() == [False, True, True]


def test_class_is_not_compared_at_negligible_scores():
    """PyTorch and ONNX Runtime order classes at 0.0000268 and 0.0000267 differently."""
    a = np.array([[0, 0, 9, 9, 2.677e-5, 2], [50, 50, 90, 90, 1e-5, 2]], np.float32)
    b = np.array([[0, 0, 9, 9, 2.676e-5, 0], [50, 50, 90, 90, 1e-5, 2]], np.float32)
    assert row_differences(a, b)[0].tolist() == [0, 0]
    confident = np.array([0, 0, 0, 0, 0.5, 0], np.float32)
    assert row_differences(a + confident, b + confident)[0].tolist() == [81, 0]


def test_not_a_number_is_as_bad_as_a_missing_row():
    a = np.array([[0, 0, 9, 9, 0.5, 0], [50, 50, 90, 90, 0.4, 1]], np.float32)
    box, score = row_differences(a, np.full_like(a, np.nan))
    assert np.isinf(box).all() and np.isinf(score).all()
