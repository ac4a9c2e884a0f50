import cv2
import numpy as np
import pytest

from drone_kd.core.detections import Detections
from drone_kd.visualization import (
    class_colour,
    contact_sheet,
    draw_detections,
    draw_trails,
    line_width,
)

BLACK = np.zeros((60, 80, 3), np.uint8)


def test_outline_is_drawn_around_the_object_on_a_copy():
    one = Detections(
        np.array([[40, 30, 44, 34]], np.float32), np.array([0.9], np.float32), np.array([0])
    )
    drawn = draw_detections(BLACK, one, ["car"])
    assert (drawn[30:34, 40:44] == 0).all()  # the object stays visible
    assert drawn[29, 39:45].any(axis=-1).all() and drawn[34, 39:45].any(axis=-1).all()
    assert not BLACK.any()


def test_box_at_the_image_edge_and_no_box():
    edge = Detections(
        np.array([[0, 0, 80, 60]], np.float32), np.array([0.5], np.float32), np.array([7])
    )
    assert draw_detections(BLACK, edge, [str(i) for i in range(8)]).any()
    none = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, int))
    assert not draw_detections(BLACK, none, []).any()


def test_contact_sheet_is_in_reading_order():
    images = [np.full((20, 40, 3), value, np.uint8) for value in (10, 20, 30)]
    sheet = contact_sheet(images, columns=2, width=161)
    assert sheet.shape == (80, 160, 3)
    assert [sheet[y, x, 0] for y in (20, 60) for x in (40, 120)] == [10, 20, 30, 0]


def detections(*boxes, class_id=0):
    n = len(boxes)
    scores = np.linspace(0.9, 0.5, n).astype(np.float32)
    return Detections(np.array(boxes, np.float32), scores, np.full(n, class_id))


def plate(image, class_id=0):
    """Return the mask of the pixels that have a class's colour."""
    return (image == class_colour(class_id)).all(axis=-1)


@pytest.mark.parametrize(("width", "line"), [(640, 1), (1280, 1), (1920, 2), (3840, 3)])
def test_lines_and_text_grow_with_the_image(width, line):
    image = np.zeros((width * 9 // 16, width, 3), np.uint8)
    assert line_width(image) == line
    box = np.array([0.4, 0.4, 0.5, 0.5]) * width
    mask = plate(draw_detections(image, detections(box), ["car"]))
    above = mask[: int(box[1]) - line].any(axis=1).sum()
    assert 0.009 < above / width < 0.035
    left = int(box[0])
    assert mask[int(box[3]) - 2, left - line : left].all() and not mask[int(box[3]) - 2, left]


def test_label_covers_no_box():
    image = np.zeros((200, 300, 3), np.uint8)
    boxes = [(100, 100, 108, 108), (100, 84, 108, 92), (90, 112, 98, 120), (112, 98, 118, 106)]
    drawn = draw_detections(image, detections(*boxes), ["car"])
    for x1, y1, x2, y2 in boxes:
        assert not drawn[y1:y2, x1:x2].any()
    assert plate(drawn).sum() > 4 * 300, "labels beside them"


def test_label_without_room_is_left_out():
    image = np.zeros((60, 60, 3), np.uint8)
    drawn = draw_detections(image, detections((1, 1, 59, 59)), ["a long name of a class"])
    assert not drawn[2:58, 2:58].any() and drawn[0].any()


def test_classes_have_different_colours():
    colours = np.array([class_colour(i) for i in range(30)], int)
    distances = np.abs(colours[:, None] - colours[None]).sum(axis=-1) + 1000 * np.eye(30)
    assert distances.min() > 25
    assert class_colour(0) == class_colour(0)


def test_name_that_the_font_lacks_is_a_number(monkeypatch):
    texts = []
    monkeypatch.setattr(cv2, "putText", lambda _, text, *rest: texts.append(text))
    draw_detections(
        np.zeros((90, 200, 3), np.uint8), detections((20, 40, 30, 50), class_id=1), ["car", "車"]
    )
    assert texts == ["class 1 0.90"]


def test_label_has_the_id_instead_of_the_score():
    image = np.zeros((200, 300, 3), np.uint8)
    one = detections([100, 100, 140, 140])
    plain, first, other = (draw_detections(image, one, ["car"], ids) for ids in (None, [7], [8]))
    assert (plain != first).any()
    assert (first != other).any()


def test_trails_are_drawn_in_the_colour_of_their_class():
    image = np.zeros((200, 300, 3), np.uint8)
    draw_trails(image, [np.array([[10.0, 50.0], [250.0, 50.0], [1e9, 50.0]])], np.array([2]))
    assert np.abs(image[50, 100] - np.array(class_colour(2))).max() < 30  # with soft edges
    assert not image[80].any()
