import numpy as np

from drone_kd_training.data.crops import Crops, _spans, boxes_inside, views


def test_windows_contain_the_boxes_inside_them():
    image = np.zeros((100, 250, 3), np.uint8)
    image[40:60, 200:220] = 255
    truth = np.array([[200 / 250, 0.4, 220 / 250, 0.6, 1.0]])
    seen = []
    for suffix, pixels, window in views(image, Crops(size=100, scales=(1.0, 0.5, 2.0))):
        boxes = boxes_inside(truth, window)[:, :4] * ([pixels.shape[1], pixels.shape[0]] * 2)
        for x1, y1, x2, y2 in boxes.round().astype(int):
            # The white square; enlarged, its edges are soft.
            least = 127 if suffix.startswith("-2.00") else 200
            assert pixels[y1:y2, x1:x2].min() > least
            seen.append(pixels.shape[:2])
    # Whole, whole and half as large, and twice as large in two halves.
    assert seen == [(100, 100), (50, 100), (100, 100), (100, 100)]
    assert _spans(250, 100) == [(0, 100), (75, 175), (150, 250)] and _spans(50, 100) == [(0, 50)]
    cut = np.array([[0.0, 0.0, 0.4, 1.0, 0], [0.0, 0.0, 1.0, 1.0, 0]])
    kept = boxes_inside(cut, (0.35, 0.0, 1.0, 1.0))
    assert len(kept) == 1  # an eighth of the first is too little
