import numpy as np

from drone_kd.core.boxes import iou, unletterbox
from drone_kd.core.preprocess import letterbox


def test_unletterbox_undoes_letterbox_and_clips():
    _, placement = letterbox(np.zeros((1080, 1920, 3), np.uint8), 640, 640)
    original = np.array([[300, 150, 330, 165], [0, 0, 1920, 1080]], np.float32)
    pad = np.array([placement.pad_x, placement.pad_y] * 2)
    network = (original * placement.scale + pad).astype(np.float32)

    back = unletterbox(network, placement, width=1920, height=1080)
    np.testing.assert_allclose(back, original, atol=1e-3)
    assert back.dtype == np.float32

    outside = unletterbox(np.array([[-9, 0, 700, 640]], np.float32), placement, 1920, 1080)
    np.testing.assert_array_equal(outside, [[0, 0, 1920, 1080]])


def test_iou_by_hand():
    first = np.array([[0, 0, 10, 10], [5, 5, 5, 5]], np.float32)
    second = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]], np.float32)
    expected = np.array([[1, 1 / 3, 0], [0, 0, 0]], np.float32)
    np.testing.assert_allclose(iou(first, second), expected, rtol=1e-6)
