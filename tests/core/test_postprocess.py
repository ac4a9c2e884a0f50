import numpy as np
import pytest

from drone_kd.core.postprocess import InferenceError, decode
from drone_kd.core.preprocess import Letterbox
from tiny_model import tiny_spec

IDENTITY = Letterbox(scale=1.0, pad_x=0, pad_y=0)


def rows(*values):
    """Each row is x1, y1, x2, y2, score, class."""
    return np.array(values, np.float32).reshape(-1, 6)


def run(output, head="dense", placement=IDENTITY, image_shape=(64, 64), **changes):
    settings = {"confidence": 0.25, "iou": 0.5, "max_detections": 10, **changes}
    return decode(output, tiny_spec(head=head), placement, image_shape, **settings)


def test_dense_rows_are_sorted_by_score():
    found = run(rows([8, 7, 12, 13, 0.5, 1], [36, 36, 44, 44, 0.9, 0], [8, 8, 10, 10, 0.2, 0]))
    np.testing.assert_array_equal(found.xyxy, [[36, 36, 44, 44], [8, 7, 12, 13]])
    np.testing.assert_array_equal(found.scores, np.array([0.9, 0.5], np.float32))
    assert found.class_ids.tolist() == [0, 1]


def test_dense_nms_is_per_class():
    overlapping = [[6, 6, 14, 14, 0.9, 0], [6, 7, 14, 15, 0.8, 0], [6, 6, 14, 14, 0.7, 1]]
    assert run(rows(*overlapping)).class_ids.tolist() == [0, 1]
    assert len(run(rows(*overlapping), iou=1.0)) == 3


def test_end2end_rows_are_sorted_without_nms():
    output = rows([1, 2, 3, 4, 0.3, 1], [5, 6, 7, 8, 0.9, 0], [5, 6, 7, 8, 0.9, 0], [0] * 6)
    found = run(output, "end2end")
    np.testing.assert_array_equal(found.xyxy, [[5, 6, 7, 8], [5, 6, 7, 8], [1, 2, 3, 4]])
    assert found.class_ids.tolist() == [0, 0, 1]
    assert len(run(output, "end2end", max_detections=1)) == 1


def test_boxes_are_in_pixels_of_the_original_image():
    placement = Letterbox(scale=0.5, pad_x=0, pad_y=14)
    in_image, in_padding = [16, 22, 24, 26, 0.9, 0], [16, 3, 24, 7, 0.9, 0]
    found = run(rows(in_image, in_padding), placement=placement, image_shape=(72, 128, 3))
    np.testing.assert_array_equal(found.xyxy, [[32, 16, 48, 24]])
    assert found.xyxy.dtype == np.float32


@pytest.mark.parametrize("head", ["dense", "end2end"])
def test_no_detection_is_an_empty_result(head):
    assert len(run(rows([0] * 6), head)) == 0
    assert len(run(rows(), head)) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 4, 5])
def test_non_finite_output_is_rejected(value, place):
    output = rows([1, 1, 2, 2, 0, 0])
    output[0, place] = value
    with pytest.raises(InferenceError, match="not finite"):
        run(output)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (np.zeros((9, 7), np.float32), r"expected rows of shape \(any, 6\), got \(9, 7\)"),
        (np.zeros((1, 9, 6), np.float32), "expected rows of shape"),
        (rows([1, 1, 2, 2, 7, 0]), "is the sigmoid missing"),
        (rows([1, 1, 2, 2, -1, 0]), "is the sigmoid missing"),
        (rows([1, 1, 2, 2, 0.9, 2]), "expected class ids 0 to 1"),
        (rows([1, 1, 2, 2, 0.9, -1]), "expected class ids 0 to 1"),
        (rows([1, 1, 2, 2, 0.9, 0.5]), "expected class ids 0 to 1"),
    ],
)
def test_output_that_breaks_the_contract_is_rejected(output, message):
    with pytest.raises(InferenceError, match=message):
        run(output)


@pytest.mark.parametrize("head", ["dense", "end2end"])
def test_boxes_without_area_are_dropped(head):
    assert len(run(rows([5, 5, 5, 9, 0.9, 0], [9, 9, 6, 13, 0.9, 0]), head)) == 0
