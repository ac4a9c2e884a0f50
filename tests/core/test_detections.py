import numpy as np
import pytest

from drone_kd.core.detections import Detections


def fields(**changes):
    values = {
        "xyxy": np.array([[1, 2, 3, 4]], np.float32),
        "scores": np.array([0.5], np.float32),
        "class_ids": np.array([0], np.int64),
    }
    return {**values, **changes}


def test_length_is_the_number_of_boxes():
    assert len(Detections(**fields())) == 1
    empty = Detections(
        np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
    )
    assert len(empty) == 0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"xyxy": np.zeros((1, 4))}, TypeError, "xyxy: expected float32, got float64"),
        ({"class_ids": np.zeros(1, np.int32)}, TypeError, "class_ids: expected int64"),
        ({"xyxy": np.zeros((2, 4), np.float32)}, ValueError, r"xyxy: expected shape \(1, 4\)"),
        ({"xyxy": np.array([[3, 2, 1, 4]], np.float32)}, ValueError, "x1 <= x2"),
        ({"xyxy": np.array([[1, 2, np.nan, 4]], np.float32)}, ValueError, "finite"),
        ({"scores": np.array([np.nan], np.float32)}, ValueError, r"scores: expected values in"),
        ({"scores": np.array([1.5], np.float32)}, ValueError, r"scores: expected values in"),
        ({"class_ids": np.array([-1], np.int64)}, ValueError, "class_ids: expected values >= 0"),
    ],
)
def test_invalid_fields_are_rejected(changes, error, message):
    with pytest.raises(error, match=message):
        Detections(**fields(**changes))
