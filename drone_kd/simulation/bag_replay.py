"""Frames of a rosbag2 with their ground truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rclpy.serialization import deserialize_message
from vision_msgs.msg import Detection2DArray

from drone_kd.media.bags import IMAGE, inspect_bag, message_to_bgr, read_messages
from drone_kd.media.image_files import SourceError
from drone_kd.simulation.replay import LabelledFrame
from drone_kd.simulation.scoring.flight_record import Truth, columns
from drone_kd.simulation.truth_messages import boxes_of, stamp_ns

_DETECTIONS = "vision_msgs/msg/Detection2DArray"


def read_bag(path: str | Path, on_error: Callable[[SourceError], None]) -> Iterator[LabelledFrame]:
    """Yield the frames of the only image topic of a bag once.

    Detections with the stamp of a frame are its ground truth. A truncated bag is read up to the
    cut.

    Args:
        path: folder or file of the bag.
        on_error: called for unreadable parts.

    Raises:
        SourceError: the bag is unreadable, or has not exactly one image topic.
    """
    files = inspect_bag(path, on_error)
    topics = {
        kind: sorted({t.name for file in files for t in file.topics if t.msgtype == kind})
        for kind in (IMAGE, _DETECTIONS)
    }
    if len(topics[IMAGE]) != 1:
        raise SourceError(
            f"{path}: expected one topic of {IMAGE}, got {', '.join(topics[IMAGE]) or 'none'}"
        )
    truths = {}
    labelled = set(topics[_DETECTIONS])
    for file in files if labelled else ():
        for message in read_messages(file, labelled, on_error):
            truth = deserialize_message(message.data, Detection2DArray)
            names, ids, xyxy = columns(boxes_of(truth, "id"))
            truths[stamp_ns(truth.header)] = Truth(xyxy, names, tuple(map(str, ids)))
    nothing = Truth(np.zeros((0, 4), np.float32), (), ())
    for file in files:
        for message in read_messages(file, set(topics[IMAGE]), on_error):
            try:
                image, stamp = message_to_bgr(message)
            except SourceError as error:
                on_error(SourceError(f"{path}: {error}"))
                continue
            yield LabelledFrame(image, truths.get(stamp, nothing) if labelled else None)
