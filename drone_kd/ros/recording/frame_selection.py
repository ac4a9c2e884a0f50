"""Which frames of a flight a model may learn most from, and a few that chance picks."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from drone_kd.core.boxes import iou
from drone_kd.core.detections import Detections

# A frame is hard when a measure, 0 to 1, reaches this.
THRESHOLDS = {"uncertainty": 0.5, "disagreement": 0.34, "novelty": 0.3}
RANDOM = "random"

# Frames further apart in seconds do not show the same: they cannot disagree.
_NEIGHBOURS_S = 0.5
_SAME_IOU = 0.3
# Pixels of the thumbnail's side, and levels of each colour in its histogram.
_SIDE, _LEVELS = 64, 8
_WINDOW = cv2.createHanningWindow((_SIDE, _SIDE), cv2.CV_32F)
# A weaker peak of the phase correlation is no movement of the picture as a whole.
_LEAST_RESPONSE = 0.3
# So many of the frames chosen before are what a new one is compared with.
_REMEMBERED = 64


class Sight(NamedTuple):
    """What of a picture is remembered.

    Attributes:
        grey: float32 (64, 64), the whole picture; its mean is 0.
        colours: float32 (512,), shares of colours; they sum to 1.
    """

    grey: np.ndarray
    colours: np.ndarray


class Choice(NamedTuple):
    """A chosen frame.

    Attributes:
        frame: as it was given.
        reasons: names of THRESHOLDS that it reached, or RANDOM.
        measures: by the names of THRESHOLDS.
    """

    frame: Any
    reasons: tuple[str, ...]
    measures: Mapping[str, float]


def look(image: np.ndarray) -> Sight:
    """Return what is remembered of a uint8 (h, w, 3) BGR picture."""
    step = max(1, min(image.shape[:2]) // (2 * _SIDE))
    small = cv2.resize(image[::step, ::step], (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    levels = (small // (256 // _LEVELS)).astype(np.int64)
    bins = (levels[..., 0] * _LEVELS + levels[..., 1]) * _LEVELS + levels[..., 2]
    colours = np.bincount(bins.ravel(), minlength=_LEVELS**3).astype(np.float32) / bins.size
    grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY).astype(np.float32)
    return Sight(grey - grey.mean(), colours)


def uncertainty(scores: np.ndarray) -> float:
    """Return how far scores (N,) are from sure: mean of 1 at 0.5, 0 at 0 and 1; none: 0."""
    return float(np.mean(1 - np.abs(2 * scores - 1))) if len(scores) else 0.0


def disagreement(
    before: Detections, after: Detections, movement: np.ndarray, width: int, height: int
) -> float:
    """Return the share of boxes of two neighbouring frames that only one of them has.

    A box is in both if one of its class overlaps it by an IoU of 0.3, once the picture's movement
    is undone. Boxes that this movement takes out of the picture, or brings in, do not count.

    Args:
        movement: float32 (2,), of the picture, x and y in its pixels.
        width, height: of the pictures in pixels.
    """
    offset = np.tile(movement, 2).astype(np.float32)
    moved, came_from = before.xyxy + offset, after.xyxy - offset
    stay = _is_inside(moved, width, height)
    were = _is_inside(came_from, width, height)
    total = stay.sum() + were.sum()
    if not total:
        return 0.0
    same = (iou(moved, after.xyxy) >= _SAME_IOU) & (
        before.class_ids[:, None] == after.class_ids[None, :]
    )
    return float((stay & ~same.any(axis=1)).sum() + (were & ~same.any(axis=0)).sum()) / total


def movement(before: Sight, after: Sight, width: int, height: int) -> np.ndarray:
    """Return by how many pixels, x and y, a picture of width x height px moved as a whole.

    By phase correlation (Kuglin and Hines 1975).
    """
    shift, response = cv2.phaseCorrelate(before.grey, after.grey, _WINDOW)
    if not response >= _LEAST_RESPONSE:  # of a black picture it may be NaN
        return np.zeros(2, np.float32)
    return np.array(shift, np.float32) * (width, height) / _SIDE


def novelty(sight: Sight, known: Sequence[Sight]) -> float:
    """Return the share of a picture's colours that the known picture most like it lacks.

    1 if none is known.
    """
    if not known:
        return 1.0
    colours = np.stack([other.colours for other in known])
    return 1.0 - float(np.minimum(colours, sight.colours).sum(axis=1).max())


def _is_inside(xyxy: np.ndarray, width: int, height: int) -> np.ndarray:
    x, y = (xyxy[:, 0] + xyxy[:, 2]) / 2, (xyxy[:, 1] + xyxy[:, 3]) / 2
    return (x >= 0) & (x < width) & (y >= 0) & (y < height)


class Selector:
    """Chooses from the frames of one camera: at most one in every 60 / `per_minute` seconds.

    These slots belong to the reasons in turn. A frame that is hard for the slot's own reason is
    preferred, the hardest of several; else one that is hard for another reason; if none is, the
    slot stays empty. In a random slot every frame has the same chance, hard or not, so that what
    a model is blind to is not missed for ever.

    Args:
        per_minute: frames per minute at most, more than 0.
        random_share: of the slots, 0 to 1.
        seed: of chance.
    """

    def __init__(self, per_minute: float, random_share: float, seed: int) -> None:
        self._slot_s = 60.0 / per_minute
        self._random_share = random_share
        self._rng = np.random.default_rng(seed)
        self._known: deque[Sight] = deque(maxlen=_REMEMBERED)
        self._before: tuple[float, Sight, Detections, tuple[int, int]] | None = None
        self._turns = deque(THRESHOLDS)
        self._ends = float("-inf")
        self._is_random = False
        self._best: tuple[tuple[bool, float], Choice, Sight] | None = None
        self._seen = 0

    def see(
        self,
        now: float,
        frame: Any,
        image: np.ndarray,
        detections: Detections,
        width: int,
        height: int,
    ) -> None:
        """Consider a frame; call `take` before, or the slot that has ended loses its choice.

        Args:
            now: seconds of any clock that never goes back.
            frame: handed back by `take`.
            image: uint8 (h, w, 3) BGR, at any scale.
            detections: in pixels of the original.
            width, height: of the original.
        """
        if now >= self._ends:
            self._begin(now)
        sight = look(image)
        measures = self._measure(now, sight, detections, width, height)
        self._before = now, sight, detections, (width, height)
        self._seen += 1
        if self._is_random:
            if self._rng.random() < 1 / self._seen:
                self._best = (False, 0.0), Choice(frame, (RANDOM,), measures), sight
            return
        hardness = {name: measures[name] / THRESHOLDS[name] for name in THRESHOLDS}
        reasons = tuple(name for name in THRESHOLDS if hardness[name] >= 1)
        if not reasons:
            return
        own = self._turns[0]
        rank = (True, hardness[own]) if own in reasons else (False, max(hardness.values()))
        if self._best is None or rank > self._best[0]:
            self._best = rank, Choice(frame, reasons, measures), sight

    def take(self, now: float) -> Choice | None:
        """Return the choice of a slot that has ended, once; None: there is none."""
        if self._best is None or now < self._ends:
            return None
        (_, choice, sight), self._best = self._best, None
        self._known.append(sight)
        return choice

    def _begin(self, now: float) -> None:
        self._ends = now + self._slot_s
        self._best, self._seen = None, 0
        self._is_random = self._rng.random() < self._random_share
        if not self._is_random:
            self._turns.rotate(-1)

    def _measure(
        self, now: float, sight: Sight, detections: Detections, width: int, height: int
    ) -> dict[str, float]:
        differs = 0.0
        if self._before is not None:
            then, sight_before, detections_before, size = self._before
            if now - then <= _NEIGHBOURS_S and size == (width, height):
                shift = movement(sight_before, sight, width, height)
                differs = disagreement(detections_before, detections, shift, width, height)
        return {
            "uncertainty": uncertainty(detections.scores),
            "disagreement": differs,
            "novelty": novelty(sight, self._known),
        }
