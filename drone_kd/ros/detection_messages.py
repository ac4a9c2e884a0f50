"""Arrays to ROS messages: images, detections, class list."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from vision_msgs.msg import (
    Detection2D,
    Detection2DArray,
    LabelInfo,
    ObjectHypothesisWithPose,
    VisionClass,
    VisionInfo,
)

from drone_kd.core.detections import Detections

_MAX_JPEG_SIDE_PX = 65_500  # libjpeg's own limit


def bgr_to_image(image: np.ndarray, header: Header) -> Image:
    """Return a uint8 (h, w, 3) BGR image as a bgr8 image message."""
    height, width = image.shape[:2]
    data = _byte_array(np.ascontiguousarray(image).data.cast("B"))
    return Image(
        header=header, height=height, width=width, encoding="bgr8", step=3 * width, data=data
    )


def bgr_to_jpeg(image: np.ndarray, quality: int, header: Header) -> CompressedImage:
    """Return a uint8 (h, w, 3) BGR image as a JPEG message, named as image_transport does.

    ValueError: a side is longer than a JPEG's may be.
    """
    height, width = image.shape[:2]
    if max(height, width) > _MAX_JPEG_SIDE_PX:
        limit = f"up to {_MAX_JPEG_SIDE_PX} pixels a side"
        raise ValueError(f"JPEG: expected an image of {limit}, got {width}x{height}")
    is_encoded, jpeg = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, quality))
    if not is_encoded:
        raise ValueError(f"OpenCV cannot encode an image of {width}x{height} as JPEG")
    data = _byte_array(jpeg.tobytes())
    return CompressedImage(header=header, format="bgr8; jpeg compressed bgr8", data=data)


def _byte_array(data: bytes | memoryview) -> array[int]:
    """Return the type that message setters do not check byte by byte, in 200 to 500 ms."""
    result = array("B")
    result.frombytes(data)
    return result


def to_detection_array(
    detections: Detections, classes: Sequence[str], header: Header
) -> Detection2DArray:
    """Return detections as a message; each one carries the image's header.

    `class_id` is the name of the class, as `class_name` in the message of `to_label_info`.
    """
    xyxy = detections.xyxy.astype(np.float64)
    centres = ((xyxy[:, :2] + xyxy[:, 2:]) / 2).tolist()
    sizes = (xyxy[:, 2:] - xyxy[:, :2]).tolist()
    message = Detection2DArray(header=header)
    for (x, y), (width, height), class_id, score in zip(
        centres, sizes, detections.class_ids.tolist(), detections.scores.tolist(), strict=True
    ):
        # Filling in the parts that a message creates is a third faster than passing new ones.
        detection = Detection2D()
        detection.header = header
        box = detection.bbox
        box.center.position.x, box.center.position.y = x, y
        box.size_x, box.size_y = width, height
        result = ObjectHypothesisWithPose()
        result.hypothesis.class_id = classes[class_id]
        result.hypothesis.score = score
        detection.results.append(result)
        message.detections.append(detection)
    return message


def to_label_info(classes: Sequence[str], threshold: float, header: Header) -> LabelInfo:
    """Return the class list, with the confidence threshold in use."""
    names = [VisionClass(class_id=i, class_name=name) for i, name in enumerate(classes)]
    return LabelInfo(header=header, class_map=names, threshold=threshold)


def to_vision_info(method: str, location: str, version: int, header: Header) -> VisionInfo:
    """Return where the class list is published, and which model uses it.

    Args:
        method: the model, as one line.
        location: topic of the class list.
        version: of the class list, from 1.
        header: of the message.
    """
    return VisionInfo(
        header=header, method=method, database_location=location, database_version=version
    )
