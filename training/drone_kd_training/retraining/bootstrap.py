# SPDX-License-Identifier: AGPL-3.0-or-later
"""Bootstrap of average precision over frames: frames are matched once, then only re-weighted.

Efron, "Bootstrap methods" (Annals of Statistics 1979): resampling the frames with replacement
estimates how a figure varies between sets of frames of the same kind.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from drone_kd.metrics import SIZES, match_frames

# Object sizes of a score: all, and each of SIZES.
AREAS = ("all", *SIZES)


@dataclass(frozen=True, eq=False)
class _Matched:
    """Matched predictions of one class and size, in descending order of score.

    Attributes:
        frame: int64 (P,) index of each prediction's frame.
        hit: bool (T, P), true positives at each IoU threshold.
        counts: bool (T, P), predictions that are not ignored.
        objects: int64 (F,) objects in each frame.
    """

    frame: np.ndarray
    hit: np.ndarray
    counts: np.ndarray
    objects: np.ndarray


class Matches:
    """Predictions over the frames of a split, each matched with the objects of its frame.

    The arguments are those of `drone_kd.metrics.precision`.
    """

    def __init__(
        self, images: list[dict], truth: list[dict], predictions: list[dict], classes: list[int]
    ) -> None:
        evaluation = match_frames(images, truth, predictions, classes)
        self.frames = len(images)
        self.recalls = evaluation.params.recThrs
        self.classes = len(classes)
        frames = iter(evaluation.evalImgs)  # by class, then size, then frame
        thresholds = len(evaluation.params.iouThrs)
        self.matched = {
            (k, area): _join([next(frames) for _ in range(self.frames)], thresholds)
            for k in range(self.classes)
            for area in AREAS
        }

    def objects(self, area: str) -> np.ndarray:
        """Return the number of objects of a size by class, int64 (C,)."""
        return np.array([self.matched[k, area].objects.sum() for k in range(self.classes)])

    def precision(self, area: str, resamples: np.ndarray, ious: slice = slice(None)) -> np.ndarray:
        """Return the AP over IoU 0.5 to 0.95 of an area of `AREAS`, by class and resample.

        ``resamples``: int64 (N, F), count of each frame; all ones give the plain figure. ``ious``:
        the IoU thresholds to use; slice(1) is 0.5. Returns float64 (C, N) in [0, 1]; NaN for a
        resample without such an object.
        """
        matched = [self.matched[k, area] for k in range(self.classes)]
        classes = [replace(m, hit=m.hit[ious], counts=m.counts[ious]) for m in matched]
        return np.array([[_average(m, w, self.recalls) for w in resamples] for m in classes])


def resample_frames(frames: int, times: int, seed: int = 0) -> np.ndarray:
    """Draw ``frames`` frames with replacement, ``times`` times: int64 (times, frames), counts."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(frames, np.full(frames, 1 / frames), size=times)


def _join(evaluated: list[dict | None], thresholds: int) -> _Matched:
    """Join pycocotools' results of single frames; None: a frame without object and prediction."""
    objects = np.array([0 if e is None else int((e["gtIgnore"] == 0).sum()) for e in evaluated])
    present = [(i, e) for i, e in enumerate(evaluated) if e is not None]
    empty = np.zeros((thresholds, 0))
    scores = np.concatenate([np.zeros(0), *(e["dtScores"] for _, e in present)])
    frame = np.concatenate([np.zeros(0), *(np.full(len(e["dtScores"]), i) for i, e in present)])
    matched = np.concatenate([empty, *(e["dtMatches"] for _, e in present)], axis=1) > 0
    ignored = np.concatenate([empty, *(e["dtIgnore"] for _, e in present)], axis=1) > 0
    order = np.argsort(-scores, kind="mergesort")  # stable, as in pycocotools
    hit, counts = (matched & ~ignored)[:, order], (~ignored)[:, order]
    return _Matched(frame.astype(np.int64)[order], hit, counts, objects)


def _average(matched: _Matched, weights: np.ndarray, recalls: np.ndarray) -> float:
    """Return the AP over the IoU thresholds with each frame counted ``weights`` (F,) times.

    Precision rises only at hits, so the curve is evaluated at hits alone.
    """
    objects = int(weights @ matched.objects)
    if not objects:
        return np.nan
    weight = weights[matched.frame]
    total = 0.0
    for hit, counts in zip(matched.hit, matched.counts, strict=True):
        at = np.flatnonzero(hit & (weight > 0))
        if not len(at):
            continue
        hits = np.cumsum(weight[at])
        precision = hits / np.cumsum(weight * counts)[at]
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        reached = np.searchsorted(hits / objects, recalls, side="left")
        total += envelope[reached[reached < len(at)]].sum()
    return total / (len(matched.hit) * len(recalls))
