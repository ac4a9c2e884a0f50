"""Tiling: large images are cut into overlapping tiles, so that small objects keep their pixels.

The network runs on the whole image, which finds large objects, and on each tile, which finds
small ones. `merge` combines the detections of all windows.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np

from drone_kd.core.arrays import BoolArray, Float32Array, Int64Array
from drone_kd.core.boxes import area, intersection, iou
from drone_kd.core.detections import Detections
from drone_kd.core.nms import survivors

OFF, AUTO = "off", "auto"

_GRID = re.compile(r"([1-9]\d?)x([1-9]\d?)")
_MAX_TILES = 64
# Two boxes of different windows are one object above this IoU. Lower than a usual NMS threshold,
# because a small box that is two pixels off overlaps its duplicate by less than half.
_DUPLICATE_IOU = 0.45
# Drop a part of an object at a tile's edge if a better box covers this share of it.
_PART_COVERED = 0.7
# Minimum overlap, along the seam, of two parts of one object.
_SEAM_IOU = 0.5
# A box touches a tile's edge if its distance is at most this share of the tile.
_EDGE = 0.01
# Maximum number of candidates to merge, best first: bounds the (N, N) matrices.
_MAX_CANDIDATES = 1024


def parse_tiling(text: str) -> str | tuple[int, int]:
    """Parse "off", "auto" or "RxC" (rows x columns, up to 64 tiles); else ValueError."""
    if text in (OFF, AUTO):
        return text
    match = _GRID.fullmatch(text)
    if match and int(match[1]) * int(match[2]) <= _MAX_TILES:
        return int(match[1]), int(match[2])
    raise ValueError(
        f"tiling: expected off, auto or ROWSxCOLUMNS with at most {_MAX_TILES} tiles, got {text!r}"
    )


def windows(
    width: int,
    height: int,
    tiling: str | tuple[int, int],
    overlap: float,
    input_width: int,
    input_height: int,
) -> Int64Array:
    """Return the windows of an image that the network runs on: the whole image, then its tiles.

    Args:
        width, height: of the image in pixels.
        tiling: what `parse_tiling` returned; "auto": the fewest tiles that are not downscaled.
        overlap: of neighbouring tiles, as a share of a tile, 0 to 0.5.
        input_width, input_height: of the network in pixels.

    Returns:
        (N, 4) of x1, y1, x2, y2 in pixels; tiles row by row.
    """
    whole = np.array([[0, 0, width, height]])
    if tiling == OFF:
        return whole
    if isinstance(tiling, str):
        rows = _tile_count(height, input_height, overlap)
        columns = _tile_count(width, input_width, overlap)
        # Tiles of a very large image are downscaled a little.
        shrink = max(math.sqrt(rows * columns / _MAX_TILES), 1.0)
        rows, columns = max(int(rows / shrink), 1), max(int(columns / shrink), 1)
    else:
        rows, columns = min(tiling[0], height), min(tiling[1], width)
    if rows * columns == 1:
        return whole
    y, x = _spans(height, rows, overlap), _spans(width, columns, overlap)
    tiles = [(x1, y1, x2, y2) for y1, y2 in y for x1, x2 in x]
    return np.concatenate([whole, np.array(tiles)])


def _tile_count(length: int, tile: int, overlap: float) -> int:
    """Return how many tiles of `tile` px cover `length` px."""
    return max(math.ceil((length / tile - overlap) / (1 - overlap) - 1e-9), 1)


def _spans(length: int, count: int, overlap: float) -> list[tuple[int, int]]:
    """Return `count` equal, overlapping spans that cover 0 to `length` px."""
    tile = min(math.ceil(length / (count - (count - 1) * overlap)), length)
    starts = np.linspace(0, length - tile, count).round().astype(int).tolist()
    return [(start, start + tile) for start in starts]


def fit_budget(count: int, affordable: int, start: int) -> tuple[list[int], int]:
    """Choose the windows of one frame if time is short: the whole image and some tiles in turn.

    Of `count` windows the first one is the whole image, which is chosen even if not a single one
    is `affordable`. Returns indices of windows, and `start` (0 at first) for the next frame.
    """
    tiles = count - 1
    if affordable >= count or tiles == 0:
        return list(range(count)), 0
    chosen = max(affordable - 1, 0)
    return [0] + [1 + (start + i) % tiles for i in range(chosen)], (start + chosen) % tiles


class _Candidates(NamedTuple):
    """N boxes of all windows, in pixels of the image."""

    xyxy: Float32Array
    scores: Float32Array
    class_ids: Int64Array
    window: Int64Array  # that each box comes from; below 0: joined from several
    cut: BoolArray  # (N, 4), which sides end at the window's edge while the image continues

    def take(self, index: Int64Array | BoolArray) -> _Candidates:
        return _Candidates._make(column[index] for column in self)

    def may_be_one(self) -> BoolArray:
        """Return (N, N) which boxes have the same class and come from different windows."""
        same_class: BoolArray = self.class_ids[:, None] == self.class_ids[None, :]
        other_window: BoolArray = self.window[:, None] != self.window[None, :]
        return same_class & other_window


def merge(
    detections: list[Detections], windows: Int64Array, width: int, height: int, max_detections: int
) -> Detections:
    """Merge the detections of all windows of one image.

    Parts of an object on both sides of a seam become one box. A part is dropped if another window
    shows the whole object. Of two boxes for one object the weaker is dropped.

    Args:
        detections: one per window, in pixels of the window.
        windows: (len(detections), 4), in pixels of the image.
        width, height: of the image in pixels.
        max_detections: the most that are returned, in pixels of the image, best score first.
    """
    boxes = _join_parts(_collect(detections, windows, width, height))
    # Whole boxes come before parts, whatever the scores.
    is_part: BoolArray = np.any(boxes.cut, axis=1)
    order = np.lexsort((-boxes.scores, is_part))
    boxes, is_part = boxes.take(order), is_part[order]
    duplicate = iou(boxes.xyxy, boxes.xyxy) > _DUPLICATE_IOU
    # Share of box j's area that lies in box i.
    share = intersection(boxes.xyxy, boxes.xyxy) / np.maximum(area(boxes.xyxy), np.float32(1e-6))
    covered = is_part[None, :] & (share > _PART_COVERED)
    kept = np.flatnonzero(survivors(boxes.may_be_one() & (duplicate | covered)))
    kept = kept[np.argsort(-boxes.scores[kept], kind="stable")][:max_detections]
    return Detections(boxes.xyxy[kept], boxes.scores[kept], boxes.class_ids[kept])


def _collect(
    detections: list[Detections], windows: Int64Array, width: int, height: int
) -> _Candidates:
    """Return the best boxes of all windows, best first."""
    window = np.repeat(np.arange(len(detections)), [len(each) for each in detections])
    corner = np.tile(windows[:, :2], 2).astype(np.float32)
    xyxy = np.concatenate([each.xyxy for each in detections]) + corner[window]
    bounds = windows[window]
    size = np.tile(bounds[:, 2:] - bounds[:, :2], 2)
    at_edge = np.abs(xyxy - bounds) <= np.maximum(_EDGE * size, 1)
    boxes = _Candidates(
        xyxy,
        np.concatenate([each.scores for each in detections]),
        np.concatenate([each.class_ids for each in detections]),
        window,
        cut=at_edge & (bounds != np.array([0, 0, width, height])),
    )
    return boxes.take(np.argsort(-boxes.scores, kind="stable")[:_MAX_CANDIDATES])


def _join_parts(boxes: _Candidates) -> _Candidates:
    """Join the parts of one object on both sides of a seam into one box."""
    indices = np.flatnonzero(boxes.cut.any(axis=1))
    if len(indices) < 2:
        return boxes
    group = _connected(_same_object(boxes.take(indices)))
    keep = np.ones(len(boxes.scores), np.bool_)
    boxes = _Candidates._make(column.copy() for column in boxes)
    for first in np.unique(group):
        members = indices[group == first]
        if len(members) == 1:
            continue
        leader = members[0]  # parts are sorted best first: this one keeps its score and position
        xyxy, cut = boxes.xyxy[members], boxes.cut[members]
        joined = np.concatenate([xyxy[:, :2].min(axis=0), xyxy[:, 2:].max(axis=0)])
        boxes.xyxy[leader] = joined
        # A side is still cut where the leader or the outermost part is cut, so that a joined box
        # yields to a whole box of another window.
        outermost = xyxy == joined
        outermost[0] = True
        boxes.cut[leader] = (cut & outermost).any(axis=0)
        boxes.window[leader] = -1 - leader
        keep[members[1:]] = False
    return boxes.take(keep)


def _same_object(parts: _Candidates) -> BoolArray:
    """Return which of N parts belong to one object across a seam: symmetric (N, N)."""
    low, high = parts.xyxy[:, None], parts.xyxy[None, :]
    # Lengths that two boxes share, and that both span, along x and y; below 0: a gap.
    shared = np.minimum(low[..., 2:], high[..., 2:]) - np.maximum(low[..., :2], high[..., :2])
    spanned = np.maximum(low[..., 2:], high[..., 2:]) - np.minimum(low[..., :2], high[..., :2])
    aligned = shared > _SEAM_IOU * spanned
    touching = shared >= 0
    # i is cut at its right and j at its left (x), or i at its bottom and j at its top (y).
    opposite = parts.cut[:, None, 2:] & parts.cut[None, :, :2]
    across: BoolArray = np.any(opposite & touching & aligned[..., ::-1], axis=-1)
    joined = across & parts.may_be_one()
    symmetric: BoolArray = joined | joined.T
    return symmetric


def _connected(adjacent: BoolArray) -> Int64Array:
    """Return (N,) the smallest index in each node's connected component."""
    count = len(adjacent)
    adjacent = adjacent | np.eye(count, dtype=np.bool_)
    group = np.arange(count)
    while True:
        smallest: Int64Array = np.where(adjacent, group[None, :], count).min(axis=1)
        if np.array_equal(smallest, group):
            return group
        group = smallest
