"""Golden images of a model file: the rows that every runtime must return for them.

The export stores parts of images, and the rows of the file that passed its gates. A runtime that
does not reproduce these rows computes something else: a miscompiled layer, another precision, a
buffer that is not updated.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from drone_kd.core.arrays import BoolArray, Float32Array, UInt8Array
from drone_kd.core.model_spec import ModelError, ModelSpec
from drone_kd.core.postprocess import InferenceError
from drone_kd.core.preprocess import PADDING_VALUE
from drone_kd.core.row_differences import row_differences
from drone_kd.parsing import ParseError, parse_json

if TYPE_CHECKING:
    from drone_kd.backends import Backend

GOLDEN_KEY = "drone_kd_golden"
SCHEMA = 1
MAX_IMAGES, MAX_ROWS, MAX_ZOOM = 8, 100, 8
# Brightness per level of a pixel: 16 levels take half a byte, without a codec that might differ.
LEVEL = 17


@dataclass(frozen=True)
class Limits:
    """Largest differences of a row from its golden one, and how many rows may differ by more."""

    box_px: float  # network pixels
    score: float
    share: float  # of the rows that matter, of all images
    image_share: float  # of all rows of an image, most of which are background


# FP32 as in the export. FP16 is also computed in FP16, by ARM's processors: single scores differ
# by 0.022 and one row in eight is off, most of them background. INT8 may be as far from its file
# as the file is from float: single boxes move far, where a value rounds to another code. In all
# precisions rounding decides between two classes of equal score.
LIMITS = {
    "fp32": Limits(0.05, 0.003, 0.05, 0.05),
    "fp16": Limits(0.5, 0.01, 0.1, 0.2),
    "int8": Limits(2.0, 0.05, 0.1, 0.1),
}
_MATTERS = 0.05  # score; rows below are background
_MISSING = 1e6  # in the place of infinity, which JSON does not know
# Of the output, which is best first: bounds the memory of the comparison.
_COMPARED_ROWS = 2000


class GoldenError(ModelError):
    """A runtime does not reproduce the golden images of its model."""


@dataclass(frozen=True)
class GoldenImage:
    """Part of an image, magnified, on the grey canvas of the network; and the rows for it."""

    x: int  # top left corner on the canvas in pixels
    y: int
    zoom: int  # pixels of the canvas per pixel of the part: large objects from few pixels
    levels: UInt8Array  # (h, w, 3) BGR, 0 to 15
    rows: Float32Array  # (N ≥ 1, 6), the best rows, best first; see `ModelSpec`

    def canvas(self, spec: ModelSpec) -> UInt8Array:
        """Return the network's input (H, W, 3) in BGR."""
        canvas = np.full((spec.input_height, spec.input_width, 3), PADDING_VALUE, np.uint8)
        pixels = _magnified(self.levels * LEVEL, self.zoom)
        height, width = pixels.shape[:2]
        canvas[self.y : self.y + height, self.x : self.x + width] = pixels
        return canvas


@dataclass(frozen=True)
class Reproduction:
    """How far a runtime is from golden rows."""

    rows: int  # compared
    off: int  # beyond a limit
    box_px: float  # largest difference in network pixels, and of a score; 1e6: a row is missing
    score: float
    holds: bool

    def __str__(self) -> str:
        verb = "reproduced" if self.holds else "NOT reproduced"
        return (
            f"{verb}: {self.off} of {self.rows} rows off, by up to {self.box_px:.3g} px and "
            f"{self.score:.2g}"
        )


def write_golden(images: Sequence[GoldenImage]) -> dict[str, str]:
    """Return the entry of the metadata that `read_golden` reads; nothing without an image."""
    entries = [
        {
            "x": image.x,
            "y": image.y,
            "zoom": image.zoom,
            "width": image.levels.shape[1],
            "height": image.levels.shape[0],
            "pixels": _packed(image.levels),
            "rows": [
                [*(round(float(v), 3) for v in row[:4]), round(float(row[4]), 5), int(row[5])]
                for row in image.rows
            ],
        }
        for image in images
    ]
    content = json.dumps({"schema": SCHEMA, "images": entries}, allow_nan=False)
    return {GOLDEN_KEY: content} if entries else {}


def read_golden(metadata: Mapping[str, str], spec: ModelSpec) -> list[GoldenImage]:
    """Return the golden images of a model file; none: an earlier version exported it.

    ModelError: the entry is damaged.
    """
    if GOLDEN_KEY not in metadata:
        return []
    try:
        record = parse_json(metadata[GOLDEN_KEY], GOLDEN_KEY)
        images = record["images"]
        if record["schema"] != SCHEMA or not 1 <= len(images) <= MAX_IMAGES:
            raise ValueError
        return [_image(entry, spec) for entry in images]
    except (ParseError, LookupError, TypeError, ValueError, OverflowError, binascii.Error):
        raise ModelError(
            f"model metadata: {GOLDEN_KEY}: expected schema {SCHEMA} with 1 to {MAX_IMAGES} "
            "images and their rows, got something else; export the model again"
        ) from None


def _image(entry: dict[str, Any], spec: ModelSpec) -> GoldenImage:
    """Return an image of the metadata; ValueError and others: it is damaged."""
    place = [entry[key] for key in ("x", "y", "zoom", "width", "height")]
    if any(type(value) is not int or value < 0 for value in place):
        raise ValueError
    x, y, zoom, width, height = place
    if min(width, height) < 1 or not 1 <= zoom <= MAX_ZOOM:
        raise ValueError
    if x + zoom * width > spec.input_width or y + zoom * height > spec.input_height:
        raise ValueError
    rows = np.array(entry["rows"], np.float32)
    if rows.ndim != 2 or rows.shape[1] != 6 or not 1 <= len(rows) <= MAX_ROWS:
        raise ValueError
    if not np.isfinite(rows).all():
        raise ValueError
    return GoldenImage(x, y, zoom, _unpacked(entry["pixels"], (height, width, 3)), rows)


def _packed(levels: UInt8Array) -> str:
    """Return levels of 4 bits each, two per byte, in base64."""
    flat = levels.ravel()
    pairs = np.pad(flat, (0, flat.size % 2)).reshape(-1, 2)
    return base64.b64encode((pairs[:, 0] << 4 | pairs[:, 1]).tobytes()).decode()


def _unpacked(text: str, shape: tuple[int, int, int]) -> UInt8Array:
    pairs = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    levels = np.stack([pairs >> 4, pairs & 15], axis=1).ravel()
    size = math.prod(shape)
    if levels.size != size + size % 2:
        raise ValueError
    return levels[:size].reshape(shape)


def _magnified(pixels: UInt8Array, zoom: int) -> UInt8Array:
    """Repeat and smooth pixels; in integers, so that the result is the same everywhere."""
    large = pixels.astype(np.int64).repeat(zoom, axis=0).repeat(zoom, axis=1)
    for axis in (0, 1):
        edges = [(0, 0)] * 3
        edges[axis] = zoom // 2, zoom - 1 - zoom // 2
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(large, edges, mode="edge"), zoom, axis
        )
        large = windows.sum(axis=-1) // zoom
    return large.astype(np.uint8)


def reproduce(backend: Backend, images: Sequence[GoldenImage]) -> Reproduction:
    """Run a backend on golden images, each in every place of the batch, and compare its rows.

    `images`: at least one, of the backend's model. InferenceError: the runtime failed.
    """
    spec, limits = backend.spec, LIMITS[backend.spec.precision]
    canvases = [image.canvas(spec) for image in images]
    parts = []
    for first in range(len(images)):
        order = [(first + place) % len(images) for place in range(spec.batch)]
        output = backend.infer(np.stack([canvases[i] for i in order]))
        parts += [
            _differences(images[i].rows, rows, limits)
            for i, rows in zip(order, output, strict=True)
        ]
    box_px, score, expected = np.concatenate(parts, axis=1)
    off = _off(box_px, score, limits)
    matter = expected >= _MATTERS
    return Reproduction(
        rows=len(box_px),
        off=int(off.sum()),
        box_px=min(float(box_px.max()), _MISSING),
        score=min(float(score.max()), _MISSING),
        holds=bool(off[matter].sum() <= limits.share * matter.sum())
        and all(
            _off(box, scores, limits).sum() <= limits.image_share * len(box)
            for box, scores, _ in parts
        ),
    )


def _differences(golden: Float32Array, rows: Float32Array, limits: Limits) -> Float32Array:
    """Return box difference, score difference and expected score of each row: (3, N)."""
    rows = rows[:_COMPARED_ROWS]
    # Better than the last golden row: the golden rows are all of these.
    surely = rows[rows[:, 4] > golden[-1, 4] + limits.score]
    return np.concatenate(
        [
            np.stack([*row_differences(one, other), one[:, 4]])
            for one, other in ((golden, rows), (surely, golden))
        ],
        axis=1,
    )


def _off(box_px: Float32Array, score: Float32Array, limits: Limits) -> BoolArray:
    return (box_px > limits.box_px) | (score > limits.score)


def require_golden(backend: Backend, images: Sequence[GoldenImage]) -> None:
    """Raise GoldenError unless a backend reproduces golden images; none: return.

    ModelError: it cannot run them.
    """
    if not images:
        return
    try:
        found = reproduce(backend, images)
    except InferenceError as error:
        raise ModelError(f"{backend.name}: the golden images cannot be run: {error}") from None
    limits = LIMITS[backend.spec.precision]
    if not found.holds:
        raise GoldenError(
            f"{backend.name} does not reproduce the golden images of the model, it computes "
            f"something else: {found.off} of {found.rows} rows are off by more than "
            f"{limits.box_px:g} px or {limits.score:g} in score, at most "
            f"{limits.image_share:.0%} of an image may be, and {limits.share:.0%} of those with "
            f"a score ≥ {_MATTERS:g}"
        )
