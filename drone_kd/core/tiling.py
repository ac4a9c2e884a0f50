"""Large pictures in pieces, so that objects of a few pixels are not scaled away.

A picture is seen whole, which finds what is large, and in overlapping tiles, which find what is
small. What two windows see of one object is brought together again by `merge`.
"""

from __future__ import annotations

import math
import re

import numpy as np

from drone_kd.core.boxes import iou, survivors
from drone_kd.core.detections import Detections

OFF, AUTO = "off", "auto"

_GRID = re.compile(r"([1-9]\d?)x([1-9]\d?)")
_MAX_TILES = 64
# Two windows see the same object if they agree at least this much: less than `iou` within one
# window asks for, because a small box that is two pixels off overlaps its twin by less than half.
_SAME_IOU = 0.45
# A part of an object at a tile's edge is dropped if a better box covers this much of it.
_PART_COVERED = 0.7
# Two parts of one object extend alike along the seam between them.
_SEAM_IOU = 0.5
# A box ends at a tile's edge if it is no farther from it than this share of the tile.
_EDGE = 0.01
# Candidates that are brought together at most, best first: bounds the (N, N) tables.
_MAX_CANDIDATES = 1024


def parse_tiling(text: str) -> str | tuple[int, int]:
    """Read "off", "auto" or "RxC" (rows x columns, at most 64 tiles).

    Raises:
        ValueError: it is none of them.
    """
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
) -> np.ndarray:
    """Cut a picture into the windows that the network is to see.

    Args:
        width, height: of the picture in pixels.
        tiling: what `parse_tiling` returned; "auto": as few tiles as it takes to shrink none.
        overlap: of neighbouring tiles, as a share of a tile, 0 to 0.5.
        input_width, input_height: of the network in pixels.

    Returns:
        int64 (N, 4) of x1, y1, x2, y2 in pixels: the whole picture, then the tiles row by row.
    """
    whole = np.array([[0, 0, width, height]])
    if tiling == OFF:
        return whole
    if tiling == AUTO:
        rows, columns = _tiles(height, input_height, overlap), _tiles(width, input_width, overlap)
        # Very large pictures are shrunk a little after all.
        shrink = max(math.sqrt(rows * columns / _MAX_TILES), 1.0)
        rows, columns = max(int(rows / shrink), 1), max(int(columns / shrink), 1)
    else:
        rows, columns = min(tiling[0], height), min(tiling[1], width)
    if rows * columns == 1:
        return whole
    y, x = _spans(height, rows, overlap), _spans(width, columns, overlap)
    tiles = [(x1, y1, x2, y2) for y1, y2 in y for x1, x2 in x]
    return np.concatenate([whole, np.array(tiles)])


def _tiles(length: int, tile: int, overlap: float) -> int:
    """Return how many tiles of `tile` px cover `length` px."""
    return max(math.ceil((length / tile - overlap) / (1 - overlap) - 1e-9), 1)


def _spans(length: int, count: int, overlap: float) -> list[tuple[int, int]]:
    """Return `count` equal spans that cover 0 to `length` px and overlap."""
    tile = min(math.ceil(length / (count - (count - 1) * overlap)), length)
    starts = np.linspace(0, length - tile, count).round().astype(int).tolist()
    return [(start, start + tile) for start in starts]


def fit_budget(count: int, affordable: int, start: int) -> tuple[list[int], int]:
    """Choose the windows of one frame when not all fit: the whole picture and some tiles.

    Args:
        count: windows of the picture, the whole one first.
        affordable: how many of them there is time for; the whole one is always looked at.
        start: the tile whose turn it is, as the last call returned it.

    Returns:
        Indices of windows, and the start of the next frame.
    """
    tiles = count - 1
    if affordable >= count or tiles == 0:
        return list(range(count)), 0
    chosen = max(affordable - 1, 0)
    return [0] + [1 + (start + i) % tiles for i in range(chosen)], (start + chosen) % tiles


def merge(
    found: list[Detections],
    seen: np.ndarray,
    width: int,
    height: int,
    max_detections: int,
) -> Detections:
    """Bring together what the windows of one picture show.

    Parts of an object on both sides of a seam become one box; parts of an object that another
    window shows whole are dropped; so is the weaker of two boxes for one object.

    Args:
        found: per window, in pixels of the window.
        seen: int64 (len(found), 4), the windows, the whole picture or tiles of it.
        width, height: of the picture in pixels.
        max_detections: keep at most this many, best first.

    Returns:
        Detections in pixels of the picture, best score first.
    """
    counts = [len(detections) for detections in found]
    of_window = np.repeat(np.arange(len(found)), counts)
    corner = np.tile(seen[:, :2], 2).astype(np.float32)
    xyxy = np.concatenate([detections.xyxy for detections in found]) + corner[of_window]
    scores = np.concatenate([detections.scores for detections in found])
    class_ids = np.concatenate([detections.class_ids for detections in found])
    best = np.argsort(-scores, kind="stable")[:_MAX_CANDIDATES]
    xyxy, scores, class_ids, of_window = xyxy[best], scores[best], class_ids[best], of_window[best]

    cut = _cut_sides(xyxy, seen[of_window], width, height)
    xyxy, scores, class_ids, of_window, cut = _join_parts(xyxy, scores, class_ids, of_window, cut)
    # Whole boxes judge parts, whatever the scores.
    is_part = cut.any(axis=1)
    order = np.lexsort((-scores, is_part))
    xyxy, scores, class_ids = xyxy[order], scores[order], class_ids[order]
    of_window, is_part = of_window[order], is_part[order]
    elsewhere = of_window[:, None] != of_window[None, :]
    same_class = class_ids[:, None] == class_ids[None, :]
    twin = iou(xyxy, xyxy) > _SAME_IOU
    covered = is_part[None, :] & (_covered(xyxy) > _PART_COVERED)
    kept = np.flatnonzero(survivors(same_class & elsewhere & (twin | covered)))
    kept = kept[np.argsort(-scores[kept], kind="stable")][:max_detections]
    return Detections(xyxy[kept], scores[kept], class_ids[kept])


def _cut_sides(xyxy: np.ndarray, seen: np.ndarray, width: int, height: int) -> np.ndarray:
    """Tell where (N, 4) boxes end at their window's edge, and the picture goes on: bool (N, 4)."""
    size = np.tile(seen[:, 2:] - seen[:, :2], 2)
    at_edge = np.abs(xyxy - seen) <= np.maximum(_EDGE * size, 1)
    return at_edge & (seen != np.array([0, 0, width, height]))


def _join_parts(
    xyxy: np.ndarray,
    scores: np.ndarray,
    class_ids: np.ndarray,
    of_window: np.ndarray,
    cut: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Make one box of the parts that lie on both sides of a seam."""
    parts = np.flatnonzero(cut.any(axis=1))
    if len(parts) < 2:
        return xyxy, scores, class_ids, of_window, cut
    box, sides = xyxy[parts], cut[parts]
    low, high = box[:, None], box[None, :]
    # Lengths that two boxes share, and that both cover, along x and along y; below 0: a gap.
    shared = np.minimum(low[..., 2:], high[..., 2:]) - np.maximum(low[..., :2], high[..., :2])
    spanned = np.maximum(low[..., 2:], high[..., 2:]) - np.minimum(low[..., :2], high[..., :2])
    alike = shared > _SEAM_IOU * spanned
    touching = shared >= 0
    # i is cut at its right and j at its left (x), or i at its bottom and j at its top (y).
    opposite = sides[:, None, 2:] & sides[None, :, :2]
    across = opposite & touching & alike[..., ::-1]
    joined = across.any(axis=-1)
    joined &= class_ids[parts][:, None] == class_ids[parts][None, :]
    joined &= of_window[parts][:, None] != of_window[parts][None, :]
    joined |= joined.T | np.eye(len(parts), dtype=bool)
    # Everything that hangs together gets the smallest index in it.
    group = np.arange(len(parts))
    while True:
        smallest = np.where(joined, group[None, :], len(parts)).min(axis=1)
        if (smallest == group).all():
            break
        group = smallest

    keep = np.ones(len(xyxy), bool)
    xyxy, scores, cut, of_window = xyxy.copy(), scores.copy(), cut.copy(), of_window.copy()
    for first in np.unique(group):
        members = parts[group == first]
        if len(members) == 1:
            continue
        # Parts come best first, so the first one keeps the best score and its place.
        leader, others = members[0], members[1:]
        xyxy[leader] = np.concatenate(
            [xyxy[members, :2].min(axis=0), xyxy[members, 2:].max(axis=0)]
        )
        # Still a part where the outermost box is one.
        cut[leader] = [
            cut[members, side][xyxy[members, side] == xyxy[leader, side]].any()
            for side in range(4)
        ]
        of_window[leader] = -1 - leader
        keep[others] = False
    return xyxy[keep], scores[keep], class_ids[keep], of_window[keep], cut[keep]


def _covered(xyxy: np.ndarray) -> np.ndarray:
    """Return the share of box j's area that lies in box i: (N, N)."""
    x1, y1, x2, y2 = xyxy.T
    width = np.minimum(x2[:, None], x2) - np.maximum(x1[:, None], x1)
    height = np.minimum(y2[:, None], y2) - np.maximum(y1[:, None], y1)
    overlap = np.maximum(width, 0) * np.maximum(height, 0)
    area = (x2 - x1) * (y2 - y1)
    return overlap / np.maximum(area, 1e-6)
