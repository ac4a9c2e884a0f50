"""Visualization: boxes and labels drawn on an image, and contact sheets of many images.

Lines and text grow with the image, so that a 4K frame shown on a laptop looks like a small one.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from itertools import islice

import cv2
import numpy as np

from drone_kd.core.arrays import UInt8Array
from drone_kd.core.detections import Detections
from drone_kd.core.preprocess import letterbox

Colour = tuple[int, int, int]  # BGR

# Easy to distinguish on vegetation, asphalt and water.
_COLOURS: tuple[Colour, ...] = (
    (0, 220, 255),
    (255, 120, 0),
    (80, 80, 255),
    (90, 230, 60),
    (255, 80, 220),
    (230, 230, 0),
)
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_GOLDEN_RATIO = 0.618034
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_FONT_SCALE = 0.42
# Longer side of an image whose lines are one pixel wide.
_UNIT_PX = 1280
# An image of more is a crowd, and labels take time in flight.
_MAX_LABELS = 100
# Around the text of a label, in units of the line width.
_MARGIN = 3


def class_colour(class_id: int) -> Colour:
    """Return the colour (BGR) in which a class is always drawn."""
    if class_id < len(_COLOURS):
        return _COLOURS[class_id]
    hue, brightness = class_id * _GOLDEN_RATIO % 1, (1.0, 0.6)[class_id % 2]
    red, green, blue = (round(255 * value) for value in colorsys.hsv_to_rgb(hue, 0.8, brightness))
    return blue, green, red


def draw_detections(
    image: UInt8Array,
    detections: Detections,
    classes: Sequence[str],
    ids: Sequence[int] | None = None,
) -> UInt8Array:
    """Draw boxes, class names and scores on a copy of an image (h, w, 3) in BGR.

    With `ids`, one per box, a label is the class and the id.

    The outline lies just outside the box, so that an object of a few pixels stays visible. A label
    that would cover a box or another label on every side of its box is left out; the best scores
    come first, and only the best 100 are labelled.
    """
    canvas = image.copy()
    # Weakest first: the best boxes end up on top.
    for box, class_id in zip(detections.xyxy[::-1], detections.class_ids[::-1], strict=True):
        draw_box(canvas, box, class_colour(int(class_id)))
    boxes = [outline(image, box) for box in detections.xyxy]
    taken = np.array(boxes, int).reshape(-1, 4)
    numbers = [f"{score:.2f}" for score in detections.scores]
    if ids is not None:
        numbers = [f"#{id_}" for id_ in ids]
    for box, number, class_id in islice(
        zip(boxes, numbers, detections.class_ids, strict=True), _MAX_LABELS
    ):
        name = classes[class_id]
        # OpenCV's fonts have ASCII only.
        text = f"{name if name.isascii() else f'class {class_id}'} {number}"
        place = _free_place(canvas, box, text, taken)
        if place is not None:
            taken = np.vstack([taken, place])
            _draw_plate(canvas, place, text, class_colour(int(class_id)))
    return canvas


def draw_trails(image: UInt8Array, trails: Sequence[np.ndarray], class_ids: np.ndarray) -> None:
    """Draw trails, each float (M, 2) in pixels, into a BGR image; colours: `class_colour`."""
    for trail, class_id in zip(trails, class_ids.tolist(), strict=True):
        # OpenCV has no lines with coordinates beyond 16 bits.
        points = np.clip(np.round(trail), -30_000, 30_000).astype(np.int32)
        colour, line = class_colour(class_id), line_width(image)
        cv2.polylines(image, [points], False, colour, line, cv2.LINE_AA)


def outline(image: UInt8Array, box: np.ndarray) -> np.ndarray:
    """Return the outer edge of a drawn box, int (4,): x1, y1, x2, y2 with x2, y2 outside.

    `box`: x1, y1, x2, y2 in pixels of the image.
    """
    height, width = image.shape[:2]
    line = line_width(image)
    edge = np.concatenate([np.floor(box[:2]) - line, np.ceil(box[2:]) + line])
    return np.clip(edge, 0, (width, height, width, height)).astype(int)


def draw_box(image: UInt8Array, box: np.ndarray, colour: Colour) -> None:
    """Draw the outline of a box x1, y1, x2, y2 in pixels, around its content, into a BGR image."""
    x1, y1, x2, y2 = outline(image, box).tolist()
    line = line_width(image)
    for rows, columns in (
        (slice(y1, y1 + line), slice(x1, x2)),
        (slice(max(y2 - line, y1), y2), slice(x1, x2)),
        (slice(y1, y2), slice(x1, x1 + line)),
        (slice(y1, y2), slice(max(x2 - line, x1), x2)),
    ):
        image[rows, columns] = colour


def draw_ring(image: UInt8Array, box: np.ndarray, colour: Colour) -> None:
    """Draw a ring around a box x1, y1, x2, y2 in pixels into a BGR image."""
    (x1, y1, x2, y2), line = (float(value) for value in box), line_width(image)
    centre = round((x1 + x2) / 2), round((y1 + y2) / 2)
    radius = round(max(x2 - x1, y2 - y1) * 0.7) + 4 * line
    cv2.circle(image, centre, radius, colour, line, cv2.LINE_AA)


def draw_text(image: UInt8Array, text: str) -> None:
    """Draw a line of ASCII on a dark plate in the upper left corner of a BGR image."""
    width, height = _plate_size(image, text)
    _draw_plate(image, np.array([0, 0, width, height]), text, _BLACK)


def line_width(image: UInt8Array) -> int:
    """Return the width of lines in an image, in pixels."""
    return max(1, round(_scale(image)))


def _scale(image: UInt8Array) -> float:
    return max(1.0, max(image.shape[:2]) / _UNIT_PX)


def _text_size(image: UInt8Array, text: str) -> tuple[int, int, int]:
    """Return width, height above the baseline, and depth below it, in pixels."""
    scale = _FONT_SCALE * _scale(image)
    (width, height), depth = cv2.getTextSize(text, _FONT, scale, line_width(image))
    return width, height, depth


def _plate_size(image: UInt8Array, text: str) -> tuple[int, int]:
    width, height, depth = _text_size(image, text)
    margin = 2 * _MARGIN * line_width(image)
    return width + margin, height + depth + margin


def _free_place(
    image: UInt8Array, box: np.ndarray, text: str, taken: np.ndarray
) -> np.ndarray | None:
    """Return a place next to a box for its label, int (4,); None: all are taken or outside.

    `taken`: boxes and labels, int (n, 4).
    """
    (x1, y1, x2, y2), (width, height) = box.tolist(), _plate_size(image, text)
    corners = (
        (x1, y1 - height),
        (x1, y2),
        (x2 - width, y1 - height),
        (x2 - width, y2),
        (x2, y1),
        (x1 - width, y1),
    )
    for x, y in corners:
        inside = x >= 0 and y >= 0 and x + width <= image.shape[1] and y + height <= image.shape[0]
        overlaps = (
            (taken[:, 0] < x + width)
            & (taken[:, 2] > x)
            & (taken[:, 1] < y + height)
            & (taken[:, 3] > y)
        )
        if inside and not overlaps.any():
            return np.array([x, y, x + width, y + height])
    return None


def _draw_plate(image: UInt8Array, place: np.ndarray, text: str, colour: Colour) -> None:
    """Draw text on a plate of a colour, in black or white, whichever has more contrast."""
    x1, y1, x2, y2 = place.tolist()
    image[y1:y2, x1:x2] = colour
    blue, green, red = colour
    is_bright = 0.114 * blue + 0.587 * green + 0.299 * red > 120
    _, _, depth = _text_size(image, text)
    margin = _MARGIN * line_width(image)
    cv2.putText(
        image,
        text,
        (x1 + margin, y2 - margin - depth),
        _FONT,
        _FONT_SCALE * _scale(image),
        _BLACK if is_bright else _WHITE,
        line_width(image),
        cv2.LINE_AA,
    )


def contact_sheet(images: Sequence[UInt8Array], columns: int, width: int) -> UInt8Array:
    """Arrange one or more images (h, w, 3) in rows, in reading order; their sizes may differ.

    Cells are width // columns pixels wide, so the sheet may be a little narrower than `width`;
    their height follows the aspect ratio of the first image.
    """
    cell_width = width // columns
    cell_height = max(round(images[0].shape[0] * cell_width / images[0].shape[1]), 1)
    cells = [letterbox(image, cell_width, cell_height)[0] for image in images]
    cells += [np.zeros_like(cells[0])] * (-len(cells) % columns)
    rows = [np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    return np.vstack(rows)
