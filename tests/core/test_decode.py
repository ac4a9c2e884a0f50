import numpy as np
import pytest
from tiny_model import tiny_spec

from drone_kd.core.decode import InferenceError, decode
from drone_kd.core.preprocess import Letterbox

PLAIN = Letterbox(scale=1.0, pad_x=0, pad_y=0)


def dense(*anchors):
    """Each anchor is cx, cy, w, h, score of "car", score of "person"."""
    return np.array(anchors, np.float32).reshape(-1, 6).T[np.newaxis]


def end2end(*rows):
    """Each row is x1, y1, x2, y2, score, class."""
    return np.array(rows, np.float32).reshape(1, -1, 6)


def run(output, spec=None, placement=PLAIN, image_shape=(64, 64), **changes):
    spec = spec or tiny_spec()
    settings = {"confidence": 0.25, "iou": 0.5, "max_detections": 10, **changes}
    return decode(output, spec, placement, image_shape, **settings)


def test_dense_takes_the_best_class_and_sorts():
    found = run(dense([10, 10, 4, 6, 0.3, 0.5], [40, 40, 8, 8, 0.9, 0.1], [9, 9, 2, 2, 0.2, 0.1]))
    np.testing.assert_array_equal(found.xyxy, [[36, 36, 44, 44], [8, 7, 12, 13]])
    np.testing.assert_array_equal(found.scores, np.array([0.9, 0.5], np.float32))
    assert found.class_ids.tolist() == [0, 1]


def test_dense_suppresses_within_a_class_only():
    twice = [[10, 10, 8, 8, 0.9, 0], [10, 11, 8, 8, 0.8, 0], [10, 10, 8, 8, 0, 0.7]]
    found = run(dense(*twice))
    assert found.class_ids.tolist() == [0, 1]
    assert len(run(dense(*twice), iou=1.0)) == 3


def test_end2end():
    spec = tiny_spec(head="end2end")
    output = end2end([1, 2, 3, 4, 0.3, 1], [5, 6, 7, 8, 0.9, 0], [5, 6, 7, 8, 0.9, 0], [0] * 6)
    found = run(output, spec)
    np.testing.assert_array_equal(found.xyxy, [[5, 6, 7, 8], [5, 6, 7, 8], [1, 2, 3, 4]])
    assert found.class_ids.tolist() == [0, 0, 1]
    assert len(run(output, spec, max_detections=1)) == 1


def test_boxes_come_back_to_the_original_picture():
    placement = Letterbox(scale=0.5, pad_x=0, pad_y=14)
    in_picture, in_padding = [20, 24, 8, 4, 0.9, 0], [20, 5, 8, 4, 0.9, 0]
    found = run(dense(in_picture, in_padding), placement=placement, image_shape=(72, 128, 3))
    np.testing.assert_array_equal(found.xyxy, [[32, 16, 48, 24]])
    assert found.xyxy.dtype == np.float32


@pytest.mark.parametrize("head", ["dense", "end2end"])
def test_nothing_found_is_an_empty_result(head):
    output = dense([1, 1, 1, 1, 0, 0]) if head == "dense" else end2end([0] * 6)
    assert len(run(output, tiny_spec(head=head))) == 0


@pytest.mark.parametrize("head", ["dense", "end2end"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, -2])
def test_values_that_are_not_finite_are_a_failure(head, value, place):
    output = dense([9, 9, 4, 4, 0, 0]) if head == "dense" else end2end([1, 1, 2, 2, 0, 0])
    output.reshape(-1)[place] = value
    with pytest.raises(InferenceError, match="not finite"):
        run(output, tiny_spec(head=head))


@pytest.mark.parametrize(
    ("output", "head", "says"),
    [
        (
            np.zeros((1, 7, 9), np.float32),
            "dense",
            r"expected shape \(1, 6, any\), got \(1, 7, 9\)",
        ),
        (np.zeros((2, 6, 9), np.float32), "dense", "expected shape"),
        (np.zeros((1, 9, 7), np.float32), "end2end", r"expected shape \(1, any, 6\)"),
        (np.zeros((9, 6), np.float32), "end2end", "expected shape"),
        (dense([9, 9, 4, 4, 3.2, 0]), "dense", "is the sigmoid missing"),
        (dense([9, 9, 4, 4, 0.5, -1]), "dense", "is the sigmoid missing"),
        (end2end([1, 1, 2, 2, 7, 0]), "end2end", "is the sigmoid missing"),
        (end2end([1, 1, 2, 2, 0.9, 2]), "end2end", "expected class ids 0 to 1"),
        (end2end([1, 1, 2, 2, 0.9, 0.5]), "end2end", "expected class ids 0 to 1"),
    ],
)
def test_outputs_that_break_the_contract(output, head, says):
    with pytest.raises(InferenceError, match=says):
        run(output, tiny_spec(head=head))


def test_boxes_without_area_are_left_out():
    assert len(run(dense([9, 9, 0, 4, 0.9, 0], [9, 9, -3, 4, 0.9, 0]))) == 0
    assert len(run(end2end([5, 5, 5, 9, 0.9, 0]), tiny_spec(head="end2end"))) == 0
