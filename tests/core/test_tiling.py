import numpy as np
import pytest

from drone_kd.core.detections import Detections
from drone_kd.core.tiling import fit_budget, merge, parse_tiling, windows

WIDTH, HEIGHT = 200, 100
# The whole image, and two tiles that share 40 px.
WINDOWS = np.array([[0, 0, 200, 100], [0, 0, 120, 100], [80, 0, 200, 100]])


def detections(*boxes):
    """Return Detections of (x1, y1, x2, y2, score, class id) tuples."""
    rows = np.array(boxes, np.float32).reshape(-1, 6)
    return Detections(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64))


def merged(whole, left, right, max_detections=100):
    parts = [detections(*whole), detections(*left), detections(*right)]
    return merge(parts, WINDOWS, WIDTH, HEIGHT, max_detections)


def test_parse_tiling():
    assert parse_tiling("off") == "off"
    assert parse_tiling("auto") == "auto"
    assert parse_tiling("2x3") == (2, 3)
    for text in ("", "on", "0x2", "2x", "2x3x4", "9x9", "-1x2", "2 x 3"):
        with pytest.raises(ValueError, match="expected off, auto or ROWSxCOLUMNS"):
            parse_tiling(text)


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("grid", [(1, 2), (2, 3), (3, 1)])
@pytest.mark.parametrize("size", [(1920, 1080), (641, 479), (5, 3)])
def test_tiles_cover_the_image_and_overlap(size, grid, overlap):
    width, height = size
    areas = windows(width, height, grid, overlap, 640, 640)
    assert areas[0].tolist() == [0, 0, width, height]
    assert len(areas) == 1 + grid[0] * grid[1]
    covered = np.zeros((height, width), int)
    for x1, y1, x2, y2 in areas[1:].tolist():
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        covered[y1:y2, x1:x2] += 1
    assert covered.min() >= 1
    sizes = areas[1:, 2:] - areas[1:, :2]
    assert (sizes == sizes[0]).all()
    row = areas[1 : 1 + grid[1]]
    shared = row[:-1, 2] - row[1:, 0]
    assert (shared >= np.floor(overlap * sizes[0, 0]) - 1).all()


def test_automatic_tiles_are_not_downscaled():
    for width, height in ((1280, 720), (1920, 1080), (3840, 2160)):
        tiles = windows(width, height, "auto", 0.2, 640, 640)[1:]
        assert ((tiles[:, 2:] - tiles[:, :2]) <= 640).all()
    assert len(windows(640, 640, "auto", 0.2, 640, 640)) == 1, "an image that fits needs no tiles"
    assert len(windows(100, 50, "auto", 0.2, 640, 640)) == 1
    assert len(windows(1920, 1080, "off", 0.2, 640, 640)) == 1
    assert len(windows(7680, 4320, "auto", 0.2, 320, 320)) <= 65


def test_boxes_are_in_pixels_of_the_image():
    result = merged([], [], [(20, 30, 40, 50, 0.9, 1)])
    assert result.xyxy.tolist() == [[100, 30, 120, 50]]
    assert result.class_ids.tolist() == [1]


def test_object_in_several_windows_is_one_detection():
    # Boxes of ten pixels are often two pixels off.
    result = merged(
        [(90, 40, 100, 50, 0.5, 0)], [(91, 41, 101, 51, 0.8, 0)], [(10, 41, 20, 50, 0.7, 0)]
    )
    assert result.scores.tolist() == pytest.approx([0.8])


def test_neighbours_and_other_classes_are_kept():
    result = merged(
        [],
        [(90, 40, 100, 50, 0.8, 0), (100, 40, 110, 50, 0.7, 0)],
        [(10, 40, 20, 50, 0.6, 1), (28, 40, 38, 50, 0.5, 0)],
    )
    assert len(result) == 4


def test_boxes_of_one_window_are_kept():
    """Within a window the network or NMS has already removed duplicates."""
    result = merged([], [(10, 40, 30, 60, 0.8, 0), (12, 40, 32, 60, 0.7, 0)], [])
    assert len(result) == 2


def test_part_is_dropped_if_another_window_has_the_whole_object():
    """Independent of the scores: only the part ends at its tile's edge."""
    result = merged([], [(85, 40, 120, 60, 0.9, 0)], [(5, 40, 110, 60, 0.4, 0)])
    assert result.xyxy.tolist() == [[85, 40, 190, 60]]


def test_small_object_inside_a_large_one_is_kept():
    result = merged([(20, 10, 180, 90, 0.9, 0)], [(30, 40, 40, 50, 0.5, 0)], [])
    assert len(result) == 2, "a whole box inside another one is not a part of it"


def test_parts_on_both_sides_of_a_seam_are_joined():
    result = merged([], [(40, 40, 120, 60, 0.6, 0)], [(0, 41, 90, 60, 0.8, 0)])
    assert result.xyxy.tolist() == [[40, 40, 170, 60]]
    assert result.scores.tolist() == pytest.approx([0.8])


def test_joined_box_yields_to_a_whole_box():
    """Although its score is better: parts cannot show where the object ends."""
    whole, left, right = (
        [(40, 40, 171, 60, 0.3, 0)],
        [(41, 40, 120, 60, 0.6, 0)],
        [(0, 40, 90, 60, 0.8, 0)],
    )
    result = merged(whole, left, right)
    assert result.xyxy.tolist() == [[40, 40, 171, 60]]


def test_parts_of_different_objects_are_not_joined():
    result = merged([], [(60, 10, 120, 30, 0.6, 0)], [(0, 60, 60, 80, 0.8, 0)])
    assert len(result) == 2
    result = merged([], [(60, 40, 120, 60, 0.6, 0)], [(0, 40, 60, 60, 0.8, 1)])
    assert len(result) == 2


def test_object_over_four_tiles_is_joined():
    areas = windows(200, 200, (2, 2), 0.2, 64, 64)
    box = np.array([20, 30, 190, 180])
    parts = [detections()]
    for window in areas[1:]:
        corner = np.tile(window[:2], 2)
        clipped = np.clip(box, np.tile(window[:2], 2), np.tile(window[2:], 2)) - corner
        parts.append(detections((*clipped, 0.5, 0)))
    result = merge(parts, areas, 200, 200, 10)
    assert result.xyxy.tolist() == [box.tolist()]


def test_best_detections_are_kept():
    boxes = [(x, 10, x + 5, 15, x / 200, 0) for x in range(0, 200, 10)]
    result = merged(boxes, [], [], max_detections=3)
    assert result.scores.tolist() == pytest.approx([0.95, 0.9, 0.85])


def test_merge_without_boxes():
    assert len(merged([], [], [])) == 0


def test_tiles_take_turns_if_time_is_short():
    start, tiles = 0, []
    for _ in range(3):
        chosen, start = fit_budget(7, 3, start)
        assert chosen[0] == 0
        tiles += chosen[1:]
    assert sorted(tiles) == [1, 2, 3, 4, 5, 6]
    assert fit_budget(7, 7, 3) == (list(range(7)), 0)
    assert fit_budget(7, 1, 3) == ([0], 3)
    assert fit_budget(1, 0, 0) == ([0], 0)
