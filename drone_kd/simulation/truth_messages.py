"""Conversion between ground truth, camera model and ROS messages."""

from __future__ import annotations

import numpy as np
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header
from vision_msgs.msg import (
    BoundingBox2D,
    Detection2D,
    Detection2DArray,
    ObjectHypothesis,
    ObjectHypothesisWithPose,
    Point2D,
    Pose2D,
)

from drone_kd.simulation.scoring.flight_record import MAX_BOXES, Truth, class_name, usable_boxes

# Class of the second hypothesis of an object to ignore.
IGNORED = "ignored"


def truth_to_message(truth: Truth, header: Header) -> Detection2DArray:
    """Return ground truth as detections of score 1; the track id is the detection's id.

    An object to ignore has a second hypothesis of the class `IGNORED`, of score 0.
    """
    xyxy = truth.xyxy.astype(np.float64)
    centres = ((xyxy[:, :2] + xyxy[:, 2:]) / 2).tolist()
    sizes = (xyxy[:, 2:] - xyxy[:, :2]).tolist()
    message = Detection2DArray(header=header)
    columns = centres, sizes, truth.names, truth.ids, truth.ignored
    for (x, y), (width, height), name, track, ignored in zip(*columns, strict=True):
        centre = Pose2D(position=Point2D(x=x, y=y))
        box = BoundingBox2D(center=centre, size_x=width, size_y=height)
        named = ObjectHypothesisWithPose(hypothesis=ObjectHypothesis(class_id=name, score=1.0))
        found = Detection2D(header=header, id=track, bbox=box, results=[named])
        if ignored:
            mark = ObjectHypothesisWithPose(hypothesis=ObjectHypothesis(class_id=IGNORED))
            found.results.append(mark)
        message.detections.append(found)
    return message


def boxes_of(message: Detection2DArray, number: str) -> list[list]:
    """Return rows of class name, number, x1, y1, x2, y2, as in a flight record.

    The number is "id", a detection's track id, or its "score". With "id" an object to ignore has
    true as a seventh value. Unusable boxes are left out; see
    `usable_boxes`.
    """
    rows = []
    for detection in message.detections[:MAX_BOXES]:
        if not detection.results:
            continue
        hypothesis = max((r.hypothesis for r in detection.results), key=lambda h: h.score)
        centre, box = detection.bbox.center.position, detection.bbox
        left, top = centre.x - box.size_x / 2, centre.y - box.size_y / 2
        value = detection.id if number == "id" else round(hypothesis.score, 4)
        xyxy = left, top, left + box.size_x, top + box.size_y
        row = [class_name(hypothesis.class_id), value, *(round(v, 2) for v in xyxy)]
        if number == "id" and any(r.hypothesis.class_id == IGNORED for r in detection.results):
            row.append(True)
        rows.append(row)
    return usable_boxes(rows, scored=number == "score")[0]


def stamp_ns(header: Header) -> int:
    """Return the stamp of a header in nanoseconds."""
    return header.stamp.sec * 10**9 + header.stamp.nanosec


def to_camera_info(shape: tuple[int, ...], focal_px: float | None, header: Header) -> CameraInfo:
    """Return the model of an ideal pinhole camera for an image of this shape.

    Without a focal length, in pixels, it is unknown, which camera_info expresses by zeros.
    """
    height, width = shape[:2]
    info = CameraInfo(header=header, height=height, width=width)
    if focal_px is not None:
        f, cx, cy = focal_px, width / 2, height / 2
        info.distortion_model = "plumb_bob"
        info.d = [0.0] * 5
        info.k = [f, 0.0, cx, 0.0, f, cy, 0.0, 0.0, 1.0]
        info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        info.p = [f, 0.0, cx, 0.0, 0.0, f, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return info
