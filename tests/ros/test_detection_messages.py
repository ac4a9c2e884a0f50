"""Arrays to ROS messages."""

import numpy as np
from std_msgs.msg import Header

from drone_kd.core.detections import Detections
from drone_kd.ros.detection_messages import (
    bgr_to_image,
    to_detection_array,
    to_label_info,
    to_vision_info,
)
from drone_kd.ros.image_conversion import image_to_bgr


def test_image_to_message_and_back():
    wide = np.random.default_rng(0).integers(0, 256, (4, 9, 3), dtype=np.uint8)
    for image in (wide, wide[:, 2:7]):
        sent = bgr_to_image(image, Header(frame_id="camera"))
        assert sent.header.frame_id == "camera"
        np.testing.assert_array_equal(image_to_bgr(sent), image)


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


def test_vision_info():
    sent = to_vision_info("model.onnx", "/detector/label_info", 2, Header())
    assert (sent.method, sent.database_location) == ("model.onnx", "/detector/label_info")
    assert sent.database_version == 2
