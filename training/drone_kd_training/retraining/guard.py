# SPDX-License-Identifier: AGPL-3.0-or-later
"""Guard of retraining: accept a candidate that is better on the new flight, not worse elsewhere.

Deployed model and candidate run over the same frames. The bootstrap over these frames
(`retraining.bootstrap`) gives the interval of the difference of their mAP. What the interval does
not show is not accepted.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from drone_kd.core.boxes import iou
from drone_kd_training.evaluation.evaluate import Evaluable, SplitPredictions, predict_split
from drone_kd_training.retraining.bootstrap import AREAS, Matches, resample_frames
from drone_kd_training.retraining.guard_margins import (
    AGREEMENT,
    CONFIDENCE,
    GAIN,
    MARGIN,
    MIN_OBJECTS,
    PART_MARGIN,
    RESAMPLES,
)
from drone_kd_training.tables import format_score
from drone_kd_training.teachers.soft_labels import IGNORE_BAND
from drone_kd_training.teachers.teachers import Predictions

LABELS = "labels"
# IoU from which a prediction matches a box, as in mAP50.
MATCH_IOU = 0.5

HOLDS, WORSE, NOT_SHOWN, FEW = "holds", "worse", "not shown", "too few objects"


@dataclass(frozen=True)
class Row:
    """One comparison of the deployed model with the candidate.

    The part "labels" is about the deployed model alone: ``objects`` confident predictions, and the
    share that agrees with labels on the base (``before``) and on the new flight (``after``).

    Attributes:
        domain: "new" or "base".
        part: "all", a class, a size, or "labels".
        objects: number of objects.
        before, after: mAP50-95 of deployed model and candidate, in [0, 1].
        low, high: interval of the gain (of "labels": of ``after``).
        least: bound that ``low`` must exceed (of "labels": that ``high`` must exceed).
        verdict: one of HOLDS, WORSE, NOT_SHOWN, FEW.
    """

    domain: str
    part: str
    objects: int
    before: float
    after: float
    low: float
    high: float
    least: float
    verdict: str


def compare_models(
    before: Evaluable,
    after: Evaluable,
    base: Path,
    mined: Path,
    teacher: Predictions,
    corrected: set[str],
) -> list[Row]:
    """Compare the deployed model and the candidate on the validation splits of two data.yaml.

    ``teacher``: predictions for the mined frames; the uncertain ones are ignore regions.
    ``corrected``: stems of the frames whose labels a person corrected, so that they are complete.
    Raises DataError or UnusableModelError, see `evaluate`.
    """
    results = {
        domain: [predict_split(model, data) for model in (before, after)]
        for domain, data in (("new", mined), ("base", base))
    }
    results["new"] = [drop_uncertain(r, teacher, corrected) for r in results["new"]]
    rows = [row for domain, both in results.items() for row in _compare(domain, *both)]
    return [*rows, _agreement(results["new"][0], results["base"][0], corrected)]


def accepted(rows: list[Row]) -> bool:
    """Return whether both domains were judged and every judged row holds."""
    judged = [row for row in rows if row.verdict != FEW]
    whole = {row.domain for row in judged if row.part == "all"}
    return whole == {"new", "base"} and all(row.verdict == HOLDS for row in judged)


def _agreement(new: SplitPredictions, base: SplitPredictions, corrected: set[str]) -> Row:
    """Compare how often labels agree with confident predictions, on the new flight and base."""
    confident, agreeing = _confident_and_agreeing(new, corrected)
    both = (confident, agreeing), _confident_and_agreeing(base, set())
    share, usual = (float(n.sum() / max(1, of.sum())) for of, n in both)
    least, low, high, verdict = AGREEMENT * usual, float("nan"), float("nan"), FEW
    if confident.sum() >= MIN_OBJECTS:
        resamples = resample_frames(len(confident), RESAMPLES)
        with np.errstate(invalid="ignore"):
            low, high = _interval((resamples @ agreeing) / (resamples @ confident))
        verdict = WORSE if high <= least else HOLDS
    return Row("new", LABELS, int(confident.sum()), usual, share, low, high, least, verdict)


def _confident_and_agreeing(
    result: SplitPredictions, corrected: set[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Count confident predictions, and those that match a label of their class: int64 (F,) each.

    Frames that a person corrected are not counted.
    """
    truth, predictions = _by_frame(result.truth), _by_frame(result.predictions)
    counts = np.zeros((2, len(result.images)), np.int64)
    for k, image in enumerate(result.images):
        if result.paths[image["id"]].stem in corrected:
            continue
        for box in predictions[image["id"]]:
            if box["score"] > IGNORE_BAND[1]:
                same = [t for t in truth[image["id"]] if t["category_id"] == box["category_id"]]
                counts[:, k] += (1, bool(_matches(_xyxy([box]), _xyxy(same))[0]))
    return counts[0], counts[1]


def drop_uncertain(
    result: SplitPredictions, teacher: Predictions, corrected: set[str]
) -> SplitPredictions:
    """Drop predictions in the teacher's uncertain boxes: neither hits nor false positives.

    A prediction that matches a label stays. Frames in ``corrected`` do not change.
    """
    truth, predictions = _by_frame(result.truth), _by_frame(result.predictions)
    kept: list[dict] = []
    for image in result.images:
        own = predictions[image["id"]]
        stem = result.paths[image["id"]].stem
        uncertain = _uncertain(teacher, stem, image)
        if stem not in corrected and len(uncertain):
            boxes = _xyxy(own)
            dropped = _matches(boxes, uncertain) & ~_matches(boxes, _xyxy(truth[image["id"]]))
            own = [box for box, drop in zip(own, dropped, strict=True) if not drop]
        kept += own
    return replace(result, predictions=kept)


def _uncertain(teacher: Predictions, stem: str, image: dict) -> np.ndarray:
    """Return the teacher's uncertain boxes in an image, float32 (N, 4) xyxy in pixels."""
    boxes, scores = teacher.found.get(stem, (np.zeros((0, 4)), np.zeros((0, 1))))
    best = scores.max(axis=1, initial=0.0)
    centre, size = np.hsplit(boxes[(best >= IGNORE_BAND[0]) & (best <= IGNORE_BAND[1])], 2)
    xyxy = np.hstack([centre - size / 2, centre + size / 2])
    return (xyxy * np.array([image["width"], image["height"]] * 2)).astype(np.float32)


def _by_frame(annotations: list[dict]) -> defaultdict[int, list[dict]]:
    frames: defaultdict[int, list[dict]] = defaultdict(list)
    for box in annotations:
        frames[box["image_id"]].append(box)
    return frames


def _matches(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return for each box (N, 4) whether it overlaps one of ``others`` (M, 4): bool (N,)."""
    return iou(boxes, others).max(axis=1, initial=0.0) >= MATCH_IOU


def _xyxy(annotations: list[dict]) -> np.ndarray:
    boxes = np.array([a["bbox"] for a in annotations], np.float32).reshape(-1, 4)
    return np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])


def _compare(domain: str, before: SplitPredictions, after: SplitPredictions) -> list[Row]:
    models = [Matches(r.images, r.truth, r.predictions, r.known) for r in (before, after)]
    frames = models[0].frames
    # The first resample has every frame once: the plain figure.
    resamples = np.vstack([np.ones((1, frames), np.int64), resample_frames(frames, RESAMPLES)])
    rows = []
    for area in AREAS:
        values = [model.precision(area, resamples) for model in models]
        objects = models[0].objects(area)
        enough = objects >= MIN_OBJECTS
        classes = enough if enough.any() else objects > 0
        means = [_mean(v[classes]) for v in values]
        whole = area == "all"
        least = (GAIN if domain == "new" else MARGIN) if whole else PART_MARGIN
        rows.append(_row(domain, area, objects[classes].sum(), means, least, bool(enough.any())))
        if whole:
            for k, i in enumerate(before.known):
                own = [v[k] for v in values]
                rows.append(_row(domain, before.names[i], objects[k], own, PART_MARGIN, enough[k]))
    return rows


def _mean(values: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is NaN
        return np.nanmean(values, axis=0)


def _row(
    domain: str, part: str, objects: int, values: list[np.ndarray], least: float, judged: bool
) -> Row:
    gains = values[1] - values[0]
    low = high = float("nan")
    verdict = FEW
    if judged:
        low, high = _interval(gains[1:])
        verdict = HOLDS if low > least else WORSE if high <= least else NOT_SHOWN
    before, after = (float(v[0]) for v in values)
    return Row(domain, part, int(objects), before, after, low, high, least, verdict)


def _interval(values: np.ndarray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(values, (tail, 1 - tail))
    return float(low), float(high)


def as_table(rows: list[Row]) -> str:
    """Return the comparisons as text, mAP50-95 in points, one line each."""
    header = (
        f"{'mAP50-95':<22}{'objects':>8}{'before':>8}{'after':>8}{'gain':>7}"
        f"{'95 %':>16}{'must be':>12}"
    )
    return "\n".join([header, *(_labels_line(r) if r.part == LABELS else _line(r) for r in rows)])


def _labels_line(row: Row) -> str:
    return (
        f"labels agree with {100 * row.after:.0f} % of the deployed model's {row.objects} "
        f"confident boxes in new frames (base: {100 * row.before:.0f} %; must be at least "
        f"{100 * row.least:.0f} %)  {row.verdict}"
    )


def _line(row: Row) -> str:
    figures = [None if np.isnan(x) else x for x in (row.before, row.after)]
    line = f"{row.domain + ' ' + row.part:<22}{row.objects:>8}"
    line += "".join(f"{format_score(x):>8}" for x in figures)
    if row.verdict == FEW:
        return f"{line}{'':>35}  {row.verdict}"
    interval = f"[{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
    line += f"{100 * (row.after - row.before):>+7.1f}{interval:>16}"
    return f"{line}{f'> {100 * row.least:+.1f}':>12}  {row.verdict}"


def as_dicts(rows: list[Row]) -> list[dict]:
    """Return the comparisons for JSON, with None in place of NaN."""
    return [
        {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in asdict(row).items()}
        for row in rows
    ]
