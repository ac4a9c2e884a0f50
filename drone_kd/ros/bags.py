"""Recorded flights: images of a bag, with its ground truth where it has some."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image
from vision_msgs.msg import Detection2DArray

from drone_kd.footage import Shot
from drone_kd.ros.images import ImageError, image_to_bgr
from drone_kd.ros.truth import boxes_of, stamp_ns
from drone_kd.score.flight import Truth, columns
from drone_kd.sources import SourceError

_IMAGE, _DETECTIONS = "sensor_msgs/msg/Image", "vision_msgs/msg/Detection2DArray"


def is_bag(path: str | Path) -> bool:
    """Tell whether this is a rosbag2: a folder with metadata.yaml, an .mcap or a .db3 file."""
    path = Path(path)
    return (path / "metadata.yaml").is_file() or path.suffix in (".mcap", ".db3")


def read_bag(path: str | Path, on_error: Callable[[SourceError], None]) -> Iterator[Shot]:
    """Yield the frames of a bag's one topic of images once.

    Detections of the bag that have the stamp of a frame are its ground truth. A bag that breaks
    off is played as far as it goes.

    Args:
        on_error: told of what cannot be read.

    Raises:
        SourceError: it is no bag that can be read, or has not one topic of images.
    """
    try:
        from rosbags.rosbag2 import Reader
    except ImportError as error:
        raise SourceError(
            f"{path}: playing a bag needs rosbags ({error}): pip install 'drone_kd[record]'"
        ) from None
    try:
        with Reader(path) as reader:
            yield from _shots(reader, path, on_error)
    except (SourceError, GeneratorExit):
        raise
    except Exception as error:  # each kind of storage has errors of its own
        line = " ".join(str(error).split())
        raise SourceError(
            f"{path}: not a bag that can be read ({line}); `ros2 bag reindex` mends one that was "
            "cut off"
        ) from None


def _shots(reader, path: str | Path, on_error: Callable[[SourceError], None]) -> Iterator[Shot]:
    images = [c for c in reader.connections if c.msgtype == _IMAGE]
    topics = sorted({c.topic for c in images})
    if len(topics) != 1:
        raise SourceError(
            f"{path}: expected one topic of {_IMAGE}, got {', '.join(topics) or 'none'}"
        )
    truths = {}
    labelled = [c for c in reader.connections if c.msgtype == _DETECTIONS]
    if labelled:
        for raw in _raw(reader, labelled, path, on_error):
            message = deserialize_message(raw, Detection2DArray)
            names, ids, xyxy = columns(boxes_of(message, "id"))
            truths[stamp_ns(message.header)] = Truth(xyxy, names, tuple(map(str, ids)))
    nothing = Truth(np.zeros((0, 4), np.float32), (), ())
    for raw in _raw(reader, images, path, on_error):
        message = deserialize_message(raw, Image)
        try:
            picture = image_to_bgr(message)
        except ImageError as error:
            on_error(SourceError(f"{path}: {error}"))
            continue
        truth = truths.get(stamp_ns(message.header), nothing) if labelled else None
        yield Shot(picture, truth)


def _raw(reader, connections, path, on_error) -> Iterator[bytes]:
    """Messages as they are stored, up to where the bag breaks off."""
    messages = reader.messages(connections)
    read = 0
    while True:
        try:
            _, _, raw = next(messages)
        except StopIteration:
            return
        except Exception as error:  # each kind of storage has errors of its own
            if not read:
                raise
            line = " ".join(str(error).split())
            on_error(SourceError(f"{path}: breaks off after {read} messages ({line})"))
            return
        read += 1
        yield raw
