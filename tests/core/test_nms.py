import cv2
import numpy as np
import pytest

from drone_kd.core import nms as module
from drone_kd.core.boxes import iou
from drone_kd.core.nms import nms


def crowd(count, objects, seed=0):
    """Return small boxes in clusters, like the rows of a dense head for an aerial image."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(10, 630, (objects, 2))[rng.integers(0, objects, count)]
    centres = centres + rng.normal(0, 1.5, (count, 2))
    half = rng.uniform(4, 10, (count, 2))
    xyxy = np.hstack([centres - half, centres + half]).astype(np.float32)
    return xyxy, rng.uniform(0, 1, count).astype(np.float32), rng.integers(0, 10, count)


def test_nms_by_hand():
    # 0 drops 1; 2 overlaps only 1, which is dropped, so 2 stays; 3 is box 0 in another class.
    xyxy = np.array([[0, 0, 10, 10], [0, 4, 10, 14], [0, 8, 10, 18], [0, 0, 10, 10]], np.float32)
    scores = np.array([0.9, 0.8, 0.7, 0.95], np.float32)
    kept = nms(xyxy, scores, np.array([0, 0, 0, 1]), iou_threshold=0.4, max_detections=10)
    assert kept.tolist() == [3, 0, 2]


def test_nms_without_boxes():
    kept = nms(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, int), 0.5, 10)
    assert kept.shape == (0,)


@pytest.mark.parametrize(("count", "objects"), [(1, 1), (300, 20), (2000, 100), (2000, 2000)])
@pytest.mark.parametrize("max_detections", [7, 300, 3000])
def test_nms_equals_opencv(count, objects, max_detections):
    xyxy, scores, class_ids = crowd(count, objects)
    apart = xyxy + 4096 * class_ids[:, None]
    xywh = np.hstack([apart[:, :2], apart[:, 2:] - apart[:, :2]]).tolist()
    expected = np.asarray(cv2.dnn.NMSBoxes(xywh, scores.tolist(), 0.0, 0.5)).reshape(-1)

    kept = nms(xyxy, scores, class_ids, 0.5, max_detections)

    assert kept.tolist() == expected[:max_detections].tolist()


def test_nms_compares_blocks_and_stops_early(monkeypatch):
    """Its speed comes from a few large comparisons, and none after `max_detections` boxes."""
    shapes = []

    def counting_iou(first, second):
        shapes.append((len(first), len(second)))
        return iou(first, second)

    monkeypatch.setattr(module, "iou", counting_iou)
    xyxy, scores, class_ids = crowd(2000, 2000)
    kept = nms(xyxy, scores, class_ids, 0.5, 300)
    assert len(kept) == 300
    # Two blocks of 256 candidates are enough, of eight: each with the kept boxes and with itself.
    assert shapes[:3] == [(0, 256), (256, 256), (shapes[2][0], 256)]
    assert len(shapes) == 4
