import numpy as np
import pytest

from drone_kd.core.detections import Detections
from drone_kd.core.tiling import fit_budget, merge, parse_tiling, windows

WIDTH, HEIGHT = 200, 100
# Two tiles that share 40 px, and the whole picture.
SEEN = np.array([[0, 0, 200, 100], [0, 0, 120, 100], [80, 0, 200, 100]])


def found(*boxes):
    """Detections from (x1, y1, x2, y2, score, class id)."""
    rows = np.array(boxes, np.float32).reshape(-1, 6)
    return Detections(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64))


def merged(whole, left, right, max_detections=100):
    return merge([found(*whole), found(*left), found(*right)], SEEN, WIDTH, HEIGHT, max_detections)


def test_what_tiling_may_be():
    assert parse_tiling("off") == "off"
    assert parse_tiling("auto") == "auto"
    assert parse_tiling("2x3") == (2, 3)
    for text in ("", "on", "0x2", "2x", "2x3x4", "9x9", "-1x2", "2 x 3"):
        with pytest.raises(ValueError, match="expected off, auto or ROWSxCOLUMNS"):
            parse_tiling(text)


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("grid", [(1, 2), (2, 3), (3, 1)])
@pytest.mark.parametrize("size", [(1920, 1080), (641, 479), (5, 3)])
def test_tiles_cover_the_picture_and_overlap(size, grid, overlap):
    width, height = size
    seen = windows(width, height, grid, overlap, 640, 640)
    assert seen[0].tolist() == [0, 0, width, height]
    assert len(seen) == 1 + grid[0] * grid[1]
    covered = np.zeros((height, width), int)
    for x1, y1, x2, y2 in seen[1:].tolist():
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        covered[y1:y2, x1:x2] += 1
    assert covered.min() >= 1
    sizes = seen[1:, 2:] - seen[1:, :2]
    assert (sizes == sizes[0]).all()
    row = seen[1 : 1 + grid[1]]
    shared = row[:-1, 2] - row[1:, 0]
    assert (shared >= np.floor(overlap * sizes[0, 0]) - 1).all()


def test_automatic_tiles_are_not_shrunk():
    for width, height in ((1280, 720), (1920, 1080), (3840, 2160)):
        tiles = windows(width, height, "auto", 0.2, 640, 640)[1:]
        assert ((tiles[:, 2:] - tiles[:, :2]) <= 640).all()
    assert len(windows(640, 640, "auto", 0.2, 640, 640)) == 1, "a picture that fits needs no tiles"
    assert len(windows(100, 50, "auto", 0.2, 640, 640)) == 1
    assert len(windows(1920, 1080, "off", 0.2, 640, 640)) == 1
    assert len(windows(7680, 4320, "auto", 0.2, 320, 320)) <= 65


def test_boxes_come_back_in_pixels_of_the_picture():
    result = merged([], [], [(20, 30, 40, 50, 0.9, 1)])
    assert result.xyxy.tolist() == [[100, 30, 120, 50]]
    assert result.class_ids.tolist() == [1]


def test_one_object_seen_by_several_windows_is_one_detection():
    # Two pixels off, as boxes of ten pixels are.
    result = merged(
        [(90, 40, 100, 50, 0.5, 0)], [(91, 41, 101, 51, 0.8, 0)], [(10, 41, 20, 50, 0.7, 0)]
    )
    assert result.scores.tolist() == pytest.approx([0.8])


def test_neighbours_and_other_classes_stay():
    result = merged(
        [],
        [(90, 40, 100, 50, 0.8, 0), (100, 40, 110, 50, 0.7, 0)],
        [(10, 40, 20, 50, 0.6, 1), (28, 40, 38, 50, 0.5, 0)],
    )
    assert len(result) == 4


def test_within_one_window_nothing_is_dropped():
    """There the network, or non-maximum suppression, has decided."""
    result = merged([], [(10, 40, 30, 60, 0.8, 0), (12, 40, 32, 60, 0.7, 0)], [])
    assert len(result) == 2


def test_a_part_goes_where_the_whole_object_is_seen():
    """Whatever the scores: the part ends at the tile's edge, the whole one does not."""
    result = merged([], [(85, 40, 120, 60, 0.9, 0)], [(5, 40, 110, 60, 0.4, 0)])
    assert result.xyxy.tolist() == [[85, 40, 190, 60]]


def test_a_small_object_beside_a_large_one_stays():
    result = merged([(20, 10, 180, 90, 0.9, 0)], [(30, 40, 40, 50, 0.5, 0)], [])
    assert len(result) == 2, "a whole box inside another one is no part of it"


def test_parts_on_both_sides_of_a_seam_are_joined():
    result = merged([], [(40, 40, 120, 60, 0.6, 0)], [(0, 41, 90, 60, 0.8, 0)])
    assert result.xyxy.tolist() == [[40, 40, 170, 60]]
    assert result.scores.tolist() == pytest.approx([0.8])


def test_parts_of_different_objects_are_not_joined():
    result = merged([], [(60, 10, 120, 30, 0.6, 0)], [(0, 60, 60, 80, 0.8, 0)])
    assert len(result) == 2
    result = merged([], [(60, 40, 120, 60, 0.6, 0)], [(0, 40, 60, 60, 0.8, 1)])
    assert len(result) == 2


def test_an_object_over_four_tiles_is_one():
    seen = windows(200, 200, (2, 2), 0.2, 64, 64)
    box = np.array([20, 30, 190, 180])
    parts = [found()]
    for window in seen[1:]:
        corner = np.tile(window[:2], 2)
        clipped = np.clip(box, np.tile(window[:2], 2), np.tile(window[2:], 2)) - corner
        parts.append(found((*clipped, 0.5, 0)))
    result = merge(parts, seen, 200, 200, 10)
    assert result.xyxy.tolist() == [box.tolist()]


def test_at_most_the_best():
    boxes = [(x, 10, x + 5, 15, x / 200, 0) for x in range(0, 200, 10)]
    result = merged(boxes, [], [], max_detections=3)
    assert result.scores.tolist() == pytest.approx([0.95, 0.9, 0.85])


def test_nothing_is_nothing():
    assert len(merged([], [], [])) == 0


def test_tiles_take_turns_when_not_all_fit():
    start, seen = 0, []
    for _ in range(3):
        chosen, start = fit_budget(7, 3, start)
        assert chosen[0] == 0
        seen += chosen[1:]
    assert sorted(seen) == [1, 2, 3, 4, 5, 6]
    assert fit_budget(7, 7, 3) == (list(range(7)), 0)
    assert fit_budget(7, 1, 3) == ([0], 3)
    assert fit_budget(1, 0, 0) == ([0], 0)
