"""Frames of recorded footage and of a rosbag2 with their ground truth."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rclpy.serialization import deserialize_message
from vision_msgs.msg import Detection2DArray

from drone_kd.media.bags import IMAGE, inspect_bag, message_to_bgr, read_messages
from drone_kd.media.image_files import SourceError, read_frames
from drone_kd.parsing import ParseError, parse_json
from drone_kd.simulation.scoring.flight_record import MAX_BOXES, Truth, read_lines, truth_of
from drone_kd.simulation.truth_messages import boxes_of, stamp_ns
from drone_kd.text import one_line

_DETECTIONS = "vision_msgs/msg/Detection2DArray"
# Of a message with `MAX_BOXES`: deserialised, it takes a hundred times its size if it declares as
# many objects as bytes.
_MAX_MESSAGE_BYTES = 500 * MAX_BOXES
_NOTHING = Truth(np.zeros((0, 4), np.float32), (), ())


class LabelledFrame(NamedTuple):
    """A frame, uint8 (h, w, 3) BGR, and its ground truth; None: unknown."""

    image: np.ndarray
    truth: Truth | None


def recorded(
    source: str | Path, labels: dict[int, Truth] | None, on_error: Callable[[SourceError], None]
) -> Iterator[LabelledFrame]:
    """Yield the frames of an image folder, an image or a video once.

    `labels` are ground truth by frame number, as of `read_labels`; a frame without an entry has no
    objects. `on_error` is called for an unreadable image; the next image takes its number.

    Raises:
        SourceError: the source is missing or unreadable.
    """
    for number, (_, image) in enumerate(read_frames(source, on_error)):
        yield LabelledFrame(image, None if labels is None else labels.get(number, _NOTHING))


def read_labels(path: str | Path) -> dict[int, Truth]:
    """Read the boxes of recorded footage from JSON lines, one per frame.

        {"frame": 0, "boxes": [["car", x1, y1, x2, y2], ["car", x1, y1, x2, y2, "track"], ...]}

    Raises:
        SourceError: the file is missing or malformed; names the line.
    """
    labels = {}
    try:
        for number, line in read_lines(path):
            try:
                row = parse_json(line, path)
                boxes = [[b[0], b[5] if len(b) > 5 else "", *b[1:5]] for b in row["boxes"]]
                labels[int(row["frame"])] = truth_of(boxes)
            except (ArithmeticError, KeyError, TypeError, ValueError, IndexError):
                raise SourceError(
                    f"{one_line(path)}, line {number}: expected "
                    '{"frame": 0, "boxes": [["car", x1, y1, x2, y2], ...]}'
                ) from None
    except ParseError as error:
        raise SourceError(str(error)) from None
    if not labels:
        raise SourceError(f"{one_line(path)}: no labels in it")
    return labels


def read_bag(path: str | Path, on_error: Callable[[SourceError], None]) -> Iterator[LabelledFrame]:
    """Yield the frames of the only image topic of a bag once.

    Detections with the stamp of a frame are its ground truth. A truncated bag is read up to the
    cut; `on_error` is called for unreadable parts.

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
            f"{one_line(path)}: expected one topic of {IMAGE}, got "
            f"{one_line(', '.join(topics[IMAGE]) or 'none')}"
        )
    truths = {}
    labelled = set(topics[_DETECTIONS])
    for file in files if labelled else ():
        for message in read_messages(file, labelled, on_error):
            try:
                _check_length(message.data)
                truth = deserialize_message(message.data, Detection2DArray)
            except Exception as error:  # rclpy has no class for it in all distributions
                problem = f"a damaged message on {message.topic} ({error})"
                on_error(SourceError(f"{one_line(path)}: {one_line(problem)}"))
                continue
            truths[stamp_ns(truth.header)] = truth_of(boxes_of(truth, "id"))
    for file in files:
        for message in read_messages(file, set(topics[IMAGE]), on_error):
            try:
                image, stamp = message_to_bgr(message)
            except SourceError as error:
                on_error(SourceError(f"{one_line(path)}: {error}"))
                continue
            yield LabelledFrame(image, truths.get(stamp, _NOTHING) if labelled else None)


def _check_length(data: bytes) -> None:
    """Raise ValueError if a Detection2DArray in CDR is too long or declares too many objects."""
    if len(data) > _MAX_MESSAGE_BYTES:
        raise ValueError(f"expected at most {_MAX_MESSAGE_BYTES / 1e6:g} MB, got more")
    order = "<" if data[1] & 1 else ">"
    # Behind the encapsulation (4 bytes) and the stamp (8): the text frame_id, then the objects.
    (text,) = struct.unpack_from(f"{order}I", data, 12)
    (objects,) = struct.unpack_from(f"{order}I", data, 16 + (text + 3) // 4 * 4)
    if objects > MAX_BOXES:
        raise ValueError(f"expected at most {MAX_BOXES} objects, got {objects}")
