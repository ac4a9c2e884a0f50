from array import array

import numpy as np
import pytest

pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not here")

from sensor_msgs.msg import Image
from std_msgs.msg import Header

from drone_kd.core.detections import Detections
from drone_kd.ros.messages import (
    ImageError,
    bgr_to_image,
    image_to_bgr,
    to_detection_array,
    to_label_info,
)

BLUE, GREEN, RED, ALPHA = 10, 20, 30, 40


def message(encoding, pixel, width=3, height=2, padding=0):
    row = bytes(pixel) * width + bytes(padding)
    return Image(
        encoding=encoding,
        width=width,
        height=height,
        step=len(row),
        data=array("B", row * height),
    )


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "pixel", "expected"),
    [
        ("bgr8", (BLUE, GREEN, RED), (BLUE, GREEN, RED)),
        ("rgb8", (RED, GREEN, BLUE), (BLUE, GREEN, RED)),
        ("bgra8", (BLUE, GREEN, RED, ALPHA), (BLUE, GREEN, RED)),
        ("rgba8", (RED, GREEN, BLUE, ALPHA), (BLUE, GREEN, RED)),
        ("mono8", (GREEN,), (GREEN, GREEN, GREEN)),
    ],
)
def test_every_encoding_becomes_bgr(encoding, pixel, expected, padding):
    image = image_to_bgr(message(encoding, pixel, padding=padding))
    assert image.shape == (2, 3, 3)
    assert image.dtype == np.uint8
    assert (image == expected).all()


def test_bgr8_is_not_copied():
    source = message("bgr8", (BLUE, GREEN, RED), padding=5)
    assert np.shares_memory(image_to_bgr(source), np.frombuffer(source.data, np.uint8))


def broken(**changes):
    image = message("bgr8", (BLUE, GREEN, RED))
    for name, value in changes.items():
        setattr(image, name, value)
    return image


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"encoding": "bayer_rggb8"}, "expected an image encoded as bgr8, .* got 'bayer_rggb8'"),
        ({"encoding": ""}, "expected an image encoded as"),
        ({"data": array("B", bytes(17))}, "expected 18 bytes for 2 rows of 9, got 17"),
        ({"step": 8}, "row step of at least 9 bytes for 3 pixels of bgr8, got 8"),
        ({"width": 0}, "got 0x2"),
        ({"height": 0}, "got 3x0"),
        ({"height": 2**32 - 1}, "got 18"),
    ],
)
def test_images_that_cannot_be_used(changes, says):
    with pytest.raises(ImageError, match=says):
        image_to_bgr(broken(**changes))


def test_picture_to_message_and_back():
    wide = np.random.default_rng(0).integers(0, 256, (4, 9, 3), dtype=np.uint8)
    for picture in (wide, wide[:, 2:7]):
        sent = bgr_to_image(picture, Header(frame_id="camera"))
        assert sent.header.frame_id == "camera"
        np.testing.assert_array_equal(image_to_bgr(sent), picture)


def test_detections_to_message():
    header = Header(frame_id="camera")
    header.stamp.sec = 7
    detections = Detections(
        np.array([[10, 20, 30.5, 24], [0, 0, 2, 2]], np.float32),
        np.array([0.75, 0.5], np.float32),
        np.array([1, 0]),
    )
    sent = to_detection_array(detections, ("car", "person"), header)

    assert sent.header == header
    assert [detection.header for detection in sent.detections] == [header, header]
    box = sent.detections[0].bbox
    assert (box.center.position.x, box.center.position.y) == (20.25, 22)
    assert (box.size_x, box.size_y, box.center.theta) == (20.5, 4, 0)
    hypotheses = [[r.hypothesis for r in detection.results] for detection in sent.detections]
    assert [[(h.class_id, h.score) for h in hypothesis] for hypothesis in hypotheses] == [
        [("person", 0.75)],
        [("car", 0.5)],
    ]


def test_no_detections_is_an_empty_array_with_the_header():
    none = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, int))
    sent = to_detection_array(none, (), Header(frame_id="camera"))
    assert sent.header.frame_id == "camera"
    assert len(sent.detections) == 0


def test_label_info():
    sent = to_label_info(("car", "person"), 0.25, Header())
    assert [(c.class_id, c.class_name) for c in sent.class_map] == [(0, "car"), (1, "person")]
    assert sent.threshold == 0.25
