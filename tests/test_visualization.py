import numpy as np

from drone_kd.core.detections import Detections
from drone_kd.visualization import contact_sheet, draw_detections

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
