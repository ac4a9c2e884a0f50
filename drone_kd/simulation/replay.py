"""Frames of recorded footage with their ground truth."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from drone_kd.media.image_files import SourceError, read_frames
from drone_kd.simulation.scoring.flight_record import Truth, columns


class LabelledFrame(NamedTuple):
    """A frame, uint8 (h, w, 3) BGR, and its ground truth; None: unknown."""

    image: np.ndarray
    truth: Truth | None


def recorded(
    source: str | Path, labels: dict[int, Truth] | None, on_error: Callable[[SourceError], None]
) -> Iterator[LabelledFrame]:
    """Yield the frames of an image folder, an image or a video once.

    Args:
        source: path of the images or the video.
        labels: ground truth by frame number, from 0; see `read_labels`. A frame without an entry
            has no objects.
        on_error: called for an unreadable image; the next image takes its number.

    Raises:
        SourceError: the source is missing or unreadable.
    """
    nothing = Truth(np.zeros((0, 4), np.float32), (), ())
    for number, (_, image) in enumerate(read_frames(source, on_error)):
        yield LabelledFrame(image, None if labels is None else labels.get(number, nothing))


def read_labels(path: str | Path) -> dict[int, Truth]:
    """Read the boxes of recorded footage from JSON lines, one per frame.

        {"frame": 0, "boxes": [["car", x1, y1, x2, y2], ["car", x1, y1, x2, y2, "track"], ...]}

    Raises:
        SourceError: the file is missing or malformed; names the line.
    """
    labels = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            boxes = [[box[0], box[5] if len(box) > 5 else "", *box[1:5]] for box in row["boxes"]]
            names, ids, xyxy = columns(boxes)
            labels[int(row["frame"])] = Truth(xyxy, names, tuple(map(str, ids)))
        except (KeyError, TypeError, ValueError, IndexError):
            raise SourceError(
                f"{path}, line {number}: expected "
                '{"frame": 0, "boxes": [["car", x1, y1, x2, y2], ...]}'
            ) from None
    if not labels:
        raise SourceError(f"{path}: no labels in it")
    return labels
