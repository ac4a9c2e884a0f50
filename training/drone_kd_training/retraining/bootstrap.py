# SPDX-License-Identifier: AGPL-3.0-or-later
"""Bootstrap of average precision over blocks of frames: frames are matched once, then re-weighted.

Efron, "Bootstrap methods" (Annals of Statistics 1979): resampling with replacement estimates how a
figure varies between sets of the same kind. Whole blocks are drawn (`retraining.stretches`),
because frames of a block are not independent.

A bootstrap of few blocks gives too narrow intervals. So an interval is the plain figure ± the
bootstrap's standard error times a quantile of Student's t, enlarged by n / (n - 1): a block pulls
the figure towards itself, by about 1 / n, so its deviation is that much too small. The cluster
jackknife (CV3) undoes the same (MacKinnon, Nielsen and Webb, "Fast and reliable jackknife and
bootstrap methods for cluster-robust inference", 2023); sqrt(n / (n - 1)) is enough for equally
large blocks only. n is the effective number of blocks, because a block with most of the objects
counts more than others (Carter, Schnepel and Steigerwald, "Asymptotic behavior of a t-test robust
to cluster heterogeneity", 2017).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t as student_t

from drone_kd.metrics import SIZES, match_frames

# Object sizes of a score: all, and each of SIZES.
AREAS = ("all", *SIZES)
# Recall steps of COCO's AP.
_RECALLS = np.linspace(0, 1, 101)
# Predictions times resamples that are computed at once: bounds memory to about 100 MB.
_CELLS = 2_000_000


@dataclass(frozen=True, eq=False)
class MatchedBoxes:
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
        self.classes = len(classes)
        frames = iter(evaluation.evalImgs)  # by class, then size, then frame
        thresholds = len(evaluation.params.iouThrs)
        self.matched = {
            (k, area): _join([next(frames) for _ in range(self.frames)], thresholds)
            for k in range(self.classes)
            for area in AREAS
        }

    def precision(self, area: str, resamples: np.ndarray, ious: slice = slice(None)) -> np.ndarray:
        """Return the AP over IoU 0.5 to 0.95 of an area of `AREAS`, by class and resample.

        ``resamples``: int64 (N, F), count of each frame; all ones give the plain figure. ``ious``:
        the IoU thresholds to use; slice(1) is 0.5. Returns float64 (C, N) in [0, 1]; NaN for a
        resample without such an object.
        """
        matched = [self.matched[k, area] for k in range(self.classes)]
        chosen = [replace(m, hit=m.hit[ious], counts=m.counts[ious]) for m in matched]
        return np.array([average_precision(m, resamples) for m in chosen])

    def frame_objects(self, area: str) -> np.ndarray:
        """Return the number of objects of a size by class and frame, int64 (C, F)."""
        return np.array([self.matched[k, area].objects for k in range(self.classes)])


def resample_blocks(of_frame: np.ndarray, times: int, seed: int = 0) -> np.ndarray:
    """Draw as many blocks as there are with replacement, ``times`` times.

    ``of_frame``: int64 (F,), block of each frame. Returns int64 (times, F), counts of the frames.
    """
    blocks = int(of_frame.max()) + 1
    rng = np.random.default_rng(seed)
    return rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=times)[:, of_frame]


def effective_blocks(of_frame: np.ndarray, objects: np.ndarray) -> float:
    """Return the number of equally large blocks that tell as much: (sum n)^2 / sum n^2.

    ``of_frame``, ``objects``: int64 (F,), block and number of objects of each frame.
    """
    counts = np.bincount(of_frame, weights=objects)
    return float(counts.sum() ** 2 / max(1.0, (counts**2).sum()))


def interval(
    figure: float, resampled: np.ndarray, blocks: float, confidence: float
) -> tuple[float, float]:
    """Return the two-sided interval of a figure.

    ``resampled``: float64 (N,), the figure in each resample; NaN where it is not defined.
    ``blocks``: effective number, above 1.
    """
    quantile = student_t.ppf((1 + confidence) / 2, blocks - 1) * blocks / (blocks - 1)
    half = float(quantile * np.nanstd(resampled))
    return figure - half, figure + half


def _join(evaluated: list[dict | None], thresholds: int) -> MatchedBoxes:
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
    return MatchedBoxes(frame.astype(np.int64)[order], hit, counts, objects)


def average_precision(matched: MatchedBoxes, weights: np.ndarray) -> np.ndarray:
    """Return the AP over the IoU thresholds in each resample.

    ``weights``: int64 (N, F), count of each frame. Returns float64 (N,) in [0, 1]; NaN without an
    object.
    """
    rows = max(1, _CELLS // max(1, len(matched.frame)))
    parts = [weights[i : i + rows] for i in range(0, len(weights), rows)]
    return np.concatenate([np.zeros(0), *(_average(matched, part) for part in parts)])


def _average(matched: MatchedBoxes, weights: np.ndarray) -> np.ndarray:
    objects = weights @ matched.objects
    weight = weights[:, matched.frame]
    total = np.zeros(len(weights))
    for hit, counts in zip(matched.hit, matched.counts, strict=True):
        at = np.flatnonzero(hit)  # precision rises only at hits
        hits = np.cumsum(weight[:, at], axis=1)
        counted = np.cumsum(weight * counts, axis=1)[:, at]
        precision = hits / np.maximum(counted, 1)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = hits / np.maximum(objects, 1)[:, None]
        reached = np.searchsorted(_RECALLS, recall, side="right")
        total += (envelope * np.diff(reached, axis=1, prepend=0)).sum(axis=1)
    average = total / (len(matched.hit) * len(_RECALLS))
    return np.where(objects > 0, average, np.nan)
