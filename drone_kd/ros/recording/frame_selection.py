"""Selection of hard frames, from which a model may learn most, and of random frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from drone_kd.core.boxes import iou
from drone_kd.core.detections import Detections
from drone_kd.detector import DecodedImage

# A frame is hard when one of its measures (0 to 1) reaches this threshold.
THRESHOLDS = {"uncertainty": 0.5, "disagreement": 0.34, "novelty": 0.3}
RANDOM = "random"
REASONS = (*THRESHOLDS, RANDOM)

# Frames further apart in seconds are not compared: the scene has changed.
_NEIGHBOURS_S = 0.5
_SAME_IOU = 0.3
# Side of the thumbnail in pixels, and histogram levels per channel.
_SIDE, _LEVELS = 64, 8
_WINDOW = cv2.createHanningWindow((_SIDE, _SIDE), cv2.CV_32F)
# Below this peak of the phase correlation there is no movement of the image as a whole.
_LEAST_RESPONSE = 0.3
# Number of earlier selected frames that a new one is compared with.
_REMEMBERED = 64
_Size = tuple[int, int]


class ImageDescriptor(NamedTuple):
    """Thumbnail and colour histogram of an image."""

    grey: np.ndarray  # float32 (64, 64), the whole image; its mean is 0
    colours: np.ndarray  # float32 (512,), histogram; it sums to 1


class Choice(NamedTuple):
    """A selected frame."""

    frame: Any  # as passed to `Selector.see`
    reasons: tuple[str, ...]  # keys of THRESHOLDS that it reached, or RANDOM
    measures: Mapping[str, float]  # by the keys of THRESHOLDS


def describe(image: np.ndarray) -> ImageDescriptor:
    """Return the descriptor of a uint8 (h, w, 3) BGR image."""
    step = max(1, min(image.shape[:2]) // (2 * _SIDE))
    small = cv2.resize(image[::step, ::step], (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    levels = (small // (256 // _LEVELS)).astype(np.int64)
    bins = (levels[..., 0] * _LEVELS + levels[..., 1]) * _LEVELS + levels[..., 2]
    colours = np.bincount(bins.ravel(), minlength=_LEVELS**3).astype(np.float32) / bins.size
    grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY).astype(np.float32)
    return ImageDescriptor(grey - grey.mean(), colours)


def uncertainty(scores: np.ndarray) -> float:
    """Return the mean uncertainty of scores (N,): 1 at 0.5, 0 at 0 and 1; 0 without scores."""
    return float(np.mean(1 - np.abs(2 * scores - 1))) if len(scores) else 0.0


def disagreement(
    before: Detections, after: Detections, movement: np.ndarray, width: int, height: int
) -> float:
    """Return the fraction of boxes that only one of two neighbouring frames has.

    Boxes of one class match at an IoU of 0.3, after compensating the movement of the image. Boxes
    that this movement takes out of the image or brings into it do not count.

    Args:
        before, after: detections of the earlier and the later frame.
        movement: float32 (2,), of the image content, x and y in pixels.
        width, height: of both images in pixels.
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


def movement(
    before: ImageDescriptor, after: ImageDescriptor, width: int, height: int
) -> np.ndarray:
    """Return the movement of an image of width x height px: float32 (2,), x and y in pixels."""
    # Kuglin and Hines 1975
    shift, response = cv2.phaseCorrelate(before.grey, after.grey, _WINDOW)
    if not response >= _LEAST_RESPONSE:  # NaN for black images
        return np.zeros(2, np.float32)
    return np.array(shift, np.float32) * (width, height) / _SIDE


def novelty(descriptor: ImageDescriptor, known: Sequence[ImageDescriptor]) -> float:
    """Return 1 minus the histogram intersection with the most similar known image; 1 if none."""
    if not known:
        return 1.0
    colours = np.stack([other.colours for other in known])
    return 1.0 - float(np.minimum(colours, descriptor.colours).sum(axis=1).max())


def _is_inside(xyxy: np.ndarray, width: int, height: int) -> np.ndarray:
    x, y = (xyxy[:, 0] + xyxy[:, 2]) / 2, (xyxy[:, 1] + xyxy[:, 3]) / 2
    return (x >= 0) & (x < width) & (y >= 0) & (y < height)


class Selector:
    """Selects at most one frame of a camera per slot of 60 / `per_minute` seconds.

    The slots belong to the reasons in turn. The hardest frame for the slot's own reason is
    preferred, then the hardest one for another reason; without a hard frame the slot stays empty.
    In a random slot every frame has the same chance, hard or not, so that objects a model never
    detects are not always missed.

    Args:
        per_minute: maximum frames per minute, more than 0.
        random_share: fraction of random slots, 0 to 1.
        seed: of the random choices.
    """

    def __init__(self, per_minute: float, random_share: float, seed: int) -> None:
        self._slot_s = 60.0 / per_minute
        self._random_share = random_share
        self._rng = np.random.default_rng(seed)
        self._known: deque[ImageDescriptor] = deque(maxlen=_REMEMBERED)
        self._before: tuple[float, ImageDescriptor, Detections, _Size] | None = None
        self._turns = deque(THRESHOLDS)
        self._ends = float("-inf")
        self._is_random = False
        self._best: tuple[tuple[bool, float], Choice, ImageDescriptor] | None = None
        self._seen = 0

    def see(self, now: float, frame: Any, decoded: DecodedImage, detections: Detections) -> None:
        """Consider a frame; call `take` before, or the choice of a slot that has ended is lost.

        Args:
            now: seconds of a monotonic clock.
            frame: returned by `take`.
            decoded: its pixels, at any scale.
            detections: in pixels of the original image.
        """
        if now >= self._ends:
            self._begin(now)
        descriptor = describe(decoded.image)
        measures = self._measure(now, descriptor, detections, (decoded.width, decoded.height))
        self._seen += 1
        if self._is_random:
            if self._rng.random() < 1 / self._seen:
                self._best = (False, 0.0), Choice(frame, (RANDOM,), measures), descriptor
            return
        hardness = {name: measures[name] / THRESHOLDS[name] for name in THRESHOLDS}
        reasons = tuple(name for name in THRESHOLDS if hardness[name] >= 1)
        if not reasons:
            return
        own = self._turns[0]
        rank = (True, hardness[own]) if own in reasons else (False, max(hardness.values()))
        if self._best is None or rank > self._best[0]:
            self._best = rank, Choice(frame, reasons, measures), descriptor

    def take(self, now: float) -> Choice | None:
        """Return the choice of a slot that has ended, once; else None."""
        if self._best is None or now < self._ends:
            return None
        (_, choice, descriptor), self._best = self._best, None
        self._known.append(descriptor)
        return choice

    def _begin(self, now: float) -> None:
        self._ends = now + self._slot_s
        self._best, self._seen = None, 0
        self._is_random = self._rng.random() < self._random_share
        if not self._is_random:
            self._turns.rotate(-1)

    def _measure(
        self, now: float, descriptor: ImageDescriptor, detections: Detections, size: _Size
    ) -> dict[str, float]:
        differs = 0.0
        if self._before is not None:
            then, descriptor_before, detections_before, size_before = self._before
            if now - then <= _NEIGHBOURS_S and size == size_before:
                shift = movement(descriptor_before, descriptor, *size)
                differs = disagreement(detections_before, detections, shift, *size)
        self._before = now, descriptor, detections, size
        return {
            "uncertainty": uncertainty(detections.scores),
            "disagreement": differs,
            "novelty": novelty(descriptor, self._known),
        }
