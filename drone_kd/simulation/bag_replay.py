"""Recorded flights: images of a bag, with its ground truth where it has some."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rclpy.serialization import deserialize_message
from vision_msgs.msg import Detection2DArray

from drone_kd.media.bags import IMAGE, inspect_bag, message_to_bgr, read_messages
from drone_kd.media.image_files import SourceError
from drone_kd.simulation.replay import Shot
from drone_kd.simulation.scoring.flight_record import Truth, columns
from drone_kd.simulation.truth_messages import boxes_of, stamp_ns

_DETECTIONS = "vision_msgs/msg/Detection2DArray"


def read_bag(path: str | Path, on_error: Callable[[SourceError], None]) -> Iterator[Shot]:
    """Yield the frames of a bag's one topic of images once.

    Detections of the bag that have the stamp of a frame are its ground truth. A bag that breaks
    off is played as far as it goes.

    Args:
        on_error: told of what cannot be read.

    Raises:
        SourceError: it is no bag that can be read, or has not one topic of images.
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
                picture, stamp = message_to_bgr(message)
            except SourceError as error:
                on_error(SourceError(f"{path}: {error}"))
                continue
            yield Shot(picture, truths.get(stamp, nothing) if labelled else None)
