"""ROS messages to arrays and back."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import cv2
import numpy as np
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import (
    BoundingBox2D,
    Detection2D,
    Detection2DArray,
    LabelInfo,
    ObjectHypothesis,
    ObjectHypothesisWithPose,
    Point2D,
    Pose2D,
    VisionClass,
)

from drone_kd.core.detections import Detections

# encoding: (bytes per pixel, OpenCV's conversion to BGR)
_ENCODINGS = {
    "bgr8": (3, None),
    "rgb8": (3, cv2.COLOR_RGB2BGR),
    "mono8": (1, cv2.COLOR_GRAY2BGR),
    "bgra8": (4, cv2.COLOR_BGRA2BGR),
    "rgba8": (4, cv2.COLOR_RGBA2BGR),
}


class ImageError(ValueError):
    """An image message cannot be used; the message is one line."""


def image_to_bgr(message: Image) -> np.ndarray:
    """Return an image message's pixels as uint8 (height, width, 3) BGR.

    A bgr8 image is a view of the message's own memory, with its row step.

    Raises:
        ImageError: the encoding is unknown, the image is empty, or its data are too short.
    """
    if message.encoding not in _ENCODINGS:
        raise ImageError(
            f"expected an image encoded as {', '.join(_ENCODINGS)}, got {message.encoding!r}"
        )
    channels, conversion = _ENCODINGS[message.encoding]
    height, width, step = message.height, message.width, message.step
    if height == 0 or width == 0:
        raise ImageError(f"expected an image with pixels, got {width}x{height}")
    if step < width * channels:
        raise ImageError(
            f"expected a row step of at least {width * channels} bytes for {width} pixels of "
            f"{message.encoding}, got {step}"
        )
    if len(message.data) < height * step:
        raise ImageError(
            f"expected {height * step} bytes for {height} rows of {step}, got {len(message.data)}"
        )
    rows = np.frombuffer(message.data, np.uint8, height * step).reshape(height, step)
    pixels = rows[:, : width * channels].reshape(height, width, channels)
    return pixels if conversion is None else cv2.cvtColor(pixels, conversion)


def bgr_to_image(image: np.ndarray, header: Header) -> Image:
    """Return a uint8 (h, w, 3) BGR picture as a bgr8 image message."""
    height, width = image.shape[:2]
    # Generated setters check anything but array.array byte by byte: 200 to 500 ms per frame.
    data = array("B")
    data.frombytes(memoryview(np.ascontiguousarray(image)).cast("B"))
    return Image(
        header=header, height=height, width=width, encoding="bgr8", step=3 * width, data=data
    )


def to_detection_array(
    detections: Detections, classes: Sequence[str], header: Header
) -> Detection2DArray:
    """Return detections as a message; every detection carries the image's header."""
    xyxy = detections.xyxy.astype(np.float64)
    centres = ((xyxy[:, :2] + xyxy[:, 2:]) / 2).tolist()
    sizes = (xyxy[:, 2:] - xyxy[:, :2]).tolist()
    message = Detection2DArray(header=header)
    message.detections = [
        Detection2D(
            header=header,
            bbox=BoundingBox2D(
                center=Pose2D(position=Point2D(x=x, y=y)), size_x=width, size_y=height
            ),
            results=[
                ObjectHypothesisWithPose(
                    hypothesis=ObjectHypothesis(class_id=classes[class_id], score=score)
                )
            ],
        )
        for (x, y), (width, height), class_id, score in zip(
            centres,
            sizes,
            detections.class_ids.tolist(),
            detections.scores.tolist(),
            strict=True,
        )
    ]
    return message


def to_label_info(classes: Sequence[str], threshold: float, header: Header) -> LabelInfo:
    """Return the class list, with the confidence threshold in use."""
    names = [VisionClass(class_id=i, class_name=name) for i, name in enumerate(classes)]
    return LabelInfo(header=header, class_map=names, threshold=threshold)
