"""Visualization: boxes drawn on an image, and contact sheets of many images."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from drone_kd.core.arrays import UInt8Array
from drone_kd.core.detections import Detections
from drone_kd.core.preprocess import letterbox

# BGR, easy to distinguish on vegetation, asphalt and water; classes use them in turn.
_COLOURS = (
    (0, 220, 255),
    (255, 120, 0),
    (80, 80, 255),
    (90, 230, 60),
    (255, 80, 220),
    (230, 230, 0),
)


def draw_detections(
    image: UInt8Array, detections: Detections, classes: Sequence[str]
) -> UInt8Array:
    """Draw boxes, class names and scores on a copy of an image (h, w, 3) in BGR.

    The outline lies just outside the box, so that an object of a few pixels stays visible.
    """
    canvas = image.copy()
    height, width = image.shape[:2]
    # Weakest first: the best boxes end up on top.
    for box, score, class_id in zip(
        detections.xyxy[::-1], detections.scores[::-1], detections.class_ids[::-1], strict=True
    ):
        colour = _COLOURS[class_id % len(_COLOURS)]
        left, top = np.maximum(np.floor(box[:2]) - 1, 0).astype(int).tolist()
        right, bottom = np.minimum(np.ceil(box[2:]), (width - 1, height - 1)).astype(int).tolist()
        cv2.rectangle(canvas, (left, top), (right, bottom), colour, 1)
        text = f"{classes[class_id]} {score:.2f}"
        # Above the box, or below it at the image's upper edge.
        baseline = top - 3 if top >= 13 else bottom + 12
        draw_text(canvas, text, (left, baseline), colour)
    return canvas


def draw_text(
    image: UInt8Array,
    text: str,
    origin: tuple[int, int] = (4, 14),
    colour: tuple[int, int, int] = (255, 255, 255),
) -> None:
    """Draw a line of ASCII with a dark outline, legible on any background, into a BGR image.

    `origin` is the left end of the text's baseline, x and y in pixels.
    """
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.4
    for shade, thickness in (((0, 0, 0), 3), (colour, 1)):
        cv2.putText(image, text, origin, font, size, shade, thickness, cv2.LINE_AA)


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
