"""Average precision over frames drawn anew: frames are matched once, then only weighed.

Efron, "Bootstrap methods" (Annals of Statistics 1979): what a figure would be on other frames of
the same kind is seen by drawing as many frames from those at hand, with replacement.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drone_kd.metrics import SIZES, match_frames

# The parts of a score: every size, and each of SIZES.
AREAS = ("all", *SIZES)


@dataclass(frozen=True, eq=False)
class _Kind:
    """Objects of one class and size: what was found of them, best scores first.

    ``frame`` (D,) index of each answer's frame; ``hit`` and ``counts`` bool (T, D) by IoU
    threshold: a hit, and neither ignored; ``objects`` (F,) in each frame.
    """

    frame: np.ndarray
    hit: np.ndarray
    counts: np.ndarray
    objects: np.ndarray


class Matches:
    """A model's answers over the frames of a split, each matched with its frame's objects."""

    def __init__(
        self, images: list[dict], truth: list[dict], found: list[dict], classes: list[int]
    ) -> None:
        """Match once; the arguments are those of `drone_kd.metrics.precision`."""
        evaluation = match_frames(images, truth, found, classes)
        self.frames = len(images)
        self.recalls = evaluation.params.recThrs
        self.classes = len(classes)
        frames = iter(evaluation.evalImgs)  # by class, then size, then frame
        thresholds = len(evaluation.params.iouThrs)
        self.kinds = {
            (k, area): _kind([next(frames) for _ in range(self.frames)], thresholds)
            for k in range(self.classes)
            for area in AREAS
        }

    def objects(self, area: str) -> np.ndarray:
        """How many objects of a size there are, by class: int64 (C,)."""
        return np.array([self.kinds[k, area].objects.sum() for k in range(self.classes)])

    def precision(self, area: str, draws: np.ndarray) -> np.ndarray:
        """Mean AP over IoU 0.5 to 0.95 of objects of a size, by class, in each draw.

        Args:
            area: one of AREAS.
            draws: (N, F), how often each frame was drawn; all ones: the plain figure.

        Returns:
            float64 (C, N) in [0, 1]; NaN where no such object was drawn.
        """
        kinds = [self.kinds[k, area] for k in range(self.classes)]
        return np.array([[_average(kind, w, self.recalls) for w in draws] for kind in kinds])


def draw_frames(frames: int, times: int, seed: int = 0) -> np.ndarray:
    """Draw ``frames`` frames with replacement, ``times`` times: int64 (times, frames), counts."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(frames, np.full(frames, 1 / frames), size=times)


def _kind(evaluated: list[dict | None], thresholds: int) -> _Kind:
    """Put pycocotools' results of single frames (None: nothing there) into one table."""
    objects = np.array([0 if e is None else int((e["gtIgnore"] == 0).sum()) for e in evaluated])
    present = [(i, e) for i, e in enumerate(evaluated) if e is not None]
    scores = np.concatenate([e["dtScores"] for _, e in present] or [np.zeros(0)])
    frame = np.concatenate([np.full(len(e["dtScores"]), i) for i, e in present] or [[]])
    empty = np.zeros((thresholds, 0))
    matched = np.concatenate([e["dtMatches"] for _, e in present] or [empty], axis=1) > 0
    ignored = np.concatenate([e["dtIgnore"] for _, e in present] or [empty], axis=1) > 0
    order = np.argsort(-scores, kind="mergesort")  # as pycocotools sorts
    hit, counts = (matched & ~ignored)[:, order], (~ignored)[:, order]
    return _Kind(frame.astype(np.int64)[order], hit, counts, objects)


def _average(kind: _Kind, weights: np.ndarray, recalls: np.ndarray) -> float:
    """AP over the IoU thresholds, each frame counted ``weights`` (F,) times; pycocotools' sums.

    The curve of precision can only rise at a hit, so that it is looked at there alone.
    """
    objects = int(weights @ kind.objects)
    if not objects:
        return np.nan
    weight = weights[kind.frame]
    total = 0.0
    for hit, counts in zip(kind.hit, kind.counts, strict=True):
        at = np.flatnonzero(hit & (weight > 0))
        if not len(at):
            continue
        hits = np.cumsum(weight[at])
        precision = hits / np.cumsum(weight * counts)[at]
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        reached = np.searchsorted(hits / objects, recalls, side="left")
        total += envelope[reached[reached < len(at)]].sum()
    return total / (len(kind.hit) * len(recalls))
