# SPDX-License-Identifier: AGPL-3.0-or-later
"""Near duplicates of images: the same frame in another encoding or size, or a part of it.

Images are compared by normalised cross-correlation of grey values without low frequencies: those
of vignetting and sky are alike in different frames. Two comparisons:

- whole against whole, on thumbnails: finds another JPEG quality or image size;
- the smaller image at each place of the larger one, at equal scale: finds a tile of a frame, and
  the frame of a tile. Coarse cells select candidates, fine cells decide.

Images without texture match nothing: frames of an empty road are no near duplicates.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from drone_kd.media.image_files import SourceError, read_image
from drone_kd.progress import track

# Correlation of near duplicates: of whole thumbnails, and of a part in fine cells; and of coarse
# cells, for candidates. On real data sets near duplicates have ≥ 0.99 as a whole and, 98 % of
# them, ≥ 0.8 as a part; other flights ≤ 0.55 and ≤ 0.47, of the same place and hour ≤ 0.77.
_WHOLE, _FINE, _COARSE = 0.85, 0.8, 0.45
# Side of a thumbnail in cells, of fine and of coarse cells in pixels.
_THUMBNAIL, _FINE_PX, _COARSE_PX = 32, 8, 32
# The band-pass filter is the difference of two Gaussian blurs, in cells; it spoils the edges. The
# blur of coarse cells is wider, so that half a cell of displacement matters little.
_FINE_BAND, _COARSE_BAND, _EDGE = (0.7, 2.0), (1.3, 3.0), 3
# Displacement in fine cells that coarse cells do not tell.
_SEARCH = 4
# Standard deviation in grey levels below which an image has no texture.
_FLAT = 0.4
# Candidates of an image that are decided on.
_CANDIDATES = 12
# Indexed images that are compared by parts, evenly spread: bounds memory and time.
MAX_SEARCHED = 400


class _Cells(NamedTuple):
    """A reduced image, float32 grey levels of zero mean: coarse and fine cells."""

    coarse: np.ndarray
    fine: np.ndarray


class _Place(NamedTuple):
    """Best place of a smaller image in a larger one: correlation, position in cells."""

    score: float
    x: int
    y: int


class NearDuplicates:
    """Index of images, which finds one that an image is a near duplicate of.

    Images that cannot be read are left out. ``kind``: of the images, for the progress line.
    """

    def __init__(self, paths: Iterable[Path], kind: str = "validation") -> None:
        listed = list(paths)
        every = max(1, -(-len(listed) // MAX_SEARCHED))
        self._paths: list[Path] = []
        self._searched: list[tuple[Path, _Cells]] = []
        thumbnails = []
        for number, path in enumerate(track(listed, f"Read {kind} images", "image")):
            try:
                image = read_image(path)
            except SourceError:
                continue
            grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
            self._paths.append(path)
            thumbnails.append(_thumbnail(grey))
            if number % every == 0:
                self._searched.append((path, _Cells(_coarse(grey), _fine(grey)[0])))
        self._thumbnails = np.array(thumbnails)

    def find(self, image: np.ndarray) -> Path | None:
        """Return an indexed image that a BGR uint8 (h, w, 3) image nearly duplicates, or None."""
        if not self._paths:
            return None
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        scores = self._thumbnails @ _thumbnail(grey)
        if scores.max() >= _WHOLE:
            return self._paths[int(scores.argmax())]
        coarse, fine = _coarse(grey), _fine(grey)
        places = [_place(coarse, other.coarse) for _, other in self._searched]
        order = sorted(range(len(places)), key=lambda i: -places[i].score)
        for index in order[:_CANDIDATES]:
            path, other = self._searched[index]
            if places[index].score >= _COARSE and any(
                _is_part(cells, other.fine, places[index]) for cells in fine
            ):
                return path
        return None


def _thumbnail(grey: np.ndarray) -> np.ndarray:
    """Return the thumbnail of a grey image: a vector of zero mean and unit norm; flat: zeros."""
    side = _THUMBNAIL + 2 * _EDGE
    cells = _band_pass(cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA)).ravel()
    cells -= cells.mean()
    flat = cells.std() < _FLAT
    return np.zeros_like(cells) if flat else cells / np.linalg.norm(cells)


def _coarse(grey: np.ndarray) -> np.ndarray:
    # The blur is computed on cells of half the size.
    return _reduced(_band_pass(_reduced(grey, _COARSE_PX // 2), _COARSE_BAND), 2)


def _fine(grey: np.ndarray) -> list[np.ndarray]:
    """Return the fine cells on four grids: one is displaced little from those of any part."""
    half = _FINE_PX // 2
    starts = ((0, 0), (0, half), (half, 0), (half, half)) if min(grey.shape) > half else ((0, 0),)
    return [_band_pass(_reduced(grey[y:, x:], _FINE_PX)) for y, x in starts]


def _reduced(values: np.ndarray, side: int) -> np.ndarray:
    """Return the means of square cells; an incomplete last row or column is left out."""
    height, width = (max(1, n // side) for n in values.shape)
    whole = values[: height * side, : width * side]
    return cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)


def _band_pass(cells: np.ndarray, band: tuple[float, float] = _FINE_BAND) -> np.ndarray:
    """Return float32 cells without low frequencies and without the edges that this spoils."""
    if min(cells.shape) <= 2 * _EDGE:
        return np.zeros((1, 1), np.float32)  # too small to compare
    values = cells.astype(np.float32)
    narrow, wide = (cv2.GaussianBlur(values, (0, 0), sigma) for sigma in band)
    return np.ascontiguousarray((narrow - wide)[_EDGE:-_EDGE, _EDGE:-_EDGE])


def _place(a: np.ndarray, b: np.ndarray) -> _Place:
    """Return where the smaller array correlates best with the larger one.

    Score 0 if it does not fit, they are equally large, or it is flat.
    """
    large, small = (a, b) if a.size > b.size else (b, a)
    fits = all(n >= m for n, m in zip(large.shape, small.shape, strict=True))
    if not fits or large.shape == small.shape or small.std() < _FLAT:
        return _Place(0.0, 0, 0)
    _, score, _, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(large, small, cv2.TM_CCOEFF_NORMED))
    return _Place(score, x, y)


def _is_part(a: np.ndarray, b: np.ndarray, place: _Place) -> bool:
    """Return whether fine cells correlate near a place in coarse cells."""
    large, small = (a, b) if a.size > b.size else (b, a)
    top, left = (_COARSE_PX // _FINE_PX * n - _SEARCH for n in (place.y, place.x))
    height, width = (n + 2 * _SEARCH for n in small.shape)
    around = large[max(0, top) : top + height, max(0, left) : left + width]
    return _place(np.ascontiguousarray(around), small).score >= _FINE
