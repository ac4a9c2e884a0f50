# SPDX-License-Identifier: AGPL-3.0-or-later
"""Guard of retraining: accept a candidate that is better on the new flight, not worse elsewhere.

Deployed model and candidate run over the same frames, and so does the first model of the lineage,
so that small losses do not add up over rounds. The bootstrap over flights or stretches of these
frames (`retraining.bootstrap`, `retraining.stretches`) gives the interval of the difference of
their mAP. What the interval does not show is not accepted.

Labels that a teacher wrote are no truth: on them mAP is the agreement with the teacher.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from drone_kd.core.boxes import iou
from drone_kd.text import one_line
from drone_kd_training.data.names import DataError
from drone_kd_training.evaluation.evaluate import Evaluable, SplitPredictions, predict_split
from drone_kd_training.retraining.bootstrap import (
    AREAS,
    Matches,
    effective_blocks,
    interval,
    resample_blocks,
)
from drone_kd_training.retraining.guard_margins import (
    AGREEMENT,
    CONFIDENCE,
    GAIN,
    MARGIN,
    MIN_BLOCKS,
    MIN_OBJECTS,
    PART_MARGIN,
    RESAMPLES,
)
from drone_kd_training.retraining.stretches import Blocks, frame_blocks
from drone_kd_training.teachers.soft_labels import IGNORE_BAND
from drone_kd_training.teachers.teachers import Predictions

LABELS = "labels"
# IoU from which a prediction matches a box, as in mAP50.
MATCH_IOU = 0.5
# Frames that are proposed for labels, at most.
LABEL_NEXT = 20

HOLDS, WORSE, NOT_SHOWN, FEW = "holds", "worse", "not shown", "too few objects"
FEW_FLIGHTS = "not enough flights"
NEW, BASE, ANCESTOR = "new", "base", "ancestor"


@dataclass(frozen=True)
class Row:
    """One comparison of the deployed model with the candidate.

    The part "labels" is about the deployed model alone: ``objects`` confident predictions, and the
    share that agrees with labels on the base (``before``) and on the new flight (``after``).

    Attributes:
        domain: NEW, BASE, or ANCESTOR: the base, ``before`` of the first model of the lineage.
        part: "all", a class, a size, or "labels".
        objects: number of objects.
        blocks: effective number of flights or stretches with these objects.
        unit: "flight" or "stretch".
        teacher: whether a teacher wrote labels of these frames, which a person did not correct.
        before, after: mAP50-95 of deployed model and candidate, in [0, 1].
        low, high: interval of the gain (of "labels": of ``after``).
        least: bound that ``low`` must exceed (of "labels": that ``high`` must exceed).
        verdict: one of HOLDS, WORSE, NOT_SHOWN, FEW, FEW_FLIGHTS.
    """

    domain: str
    part: str
    objects: int
    blocks: float
    unit: str
    teacher: bool
    before: float
    after: float
    low: float
    high: float
    least: float
    verdict: str


class Comparison(NamedTuple):
    """Rows of the guard, and frames of the new flight whose labels would tell most, best first."""

    rows: list[Row]
    label_next: list[str]


def compare_models(
    before: Evaluable,
    after: Evaluable,
    base: Path,
    mined: Path,
    teacher: Predictions,
    corrected: set[str],
    ancestor: Evaluable | None = None,
    excluded: Set[Path] = frozenset(),
) -> Comparison:
    """Compare the deployed model and the candidate on the validation splits of two data.yaml.

    ``teacher``: predictions for the mined frames; the uncertain ones are ignore regions.
    ``corrected``: stems of the frames whose labels a person corrected, so that they are complete.
    ``ancestor``: first model of the lineage, unless it is the deployed one or not known.
    ``excluded``: frames that judge nothing. Raises DataError or UnusableModelError, see
    `evaluate`.
    """
    new = [_judging(predict_split(model, mined), excluded) for model in (before, after)]
    new = [drop_uncertain(r, teacher, corrected) for r in new]
    old = [_judging(predict_split(model, base), excluded) for model in (before, after)]
    rows = [*_compare(NEW, new[0], new[1], corrected), *_compare(BASE, old[0], old[1])]
    if ancestor is not None:
        rows += _compare(ANCESTOR, _judging(predict_split(ancestor, base), excluded), old[1])
    rows.append(_agreement(new[0], old[0], corrected))
    return Comparison(rows, _most_telling(new[0], new[1], corrected))


def _judging(result: SplitPredictions, excluded: Set[Path]) -> SplitPredictions:
    """Return the predictions without those for ``excluded`` frames; DataError: none is left."""
    images = [i for i in result.images if result.paths[i["id"]] not in excluded]
    if not images:
        raise DataError(
            f"{one_line(result.paths[0].parent)}: expected frames to judge a candidate by, got "
            f"only {len(result.images)} that it learned from or that a teacher labelled; label "
            "frames of another flight"
        )
    kept = {i["id"] for i in images}
    truth, predictions = (
        [box for box in boxes if box["image_id"] in kept]
        for boxes in (result.truth, result.predictions)
    )
    return replace(result, images=images, truth=truth, predictions=predictions)


def _most_telling(
    before: SplitPredictions, after: SplitPredictions, corrected: set[str]
) -> list[str]:
    """Return the stems of frames without a person's labels in which the models differ, most first.

    Two models differ by the scores of the boxes that the other one does not have.
    """
    found = [_by_frame(result.predictions) for result in (before, after)]
    difference: dict[str, float] = {}
    for image in before.images:
        stem = before.paths[image["id"]].stem
        own, others = (boxes[image["id"]] for boxes in found)
        alone = [*_without_match(own, others), *_without_match(others, own)]
        if stem not in corrected and alone:
            difference[stem] = sum(box["score"] for box in alone)
    return sorted(difference, key=lambda stem: -difference[stem])[:LABEL_NEXT]


def _without_match(boxes: list[dict], others: list[dict]) -> list[dict]:
    """Return the boxes, without background, that no other box of their class overlaps."""
    found = []
    for box in boxes:
        if box["score"] >= IGNORE_BAND[0]:
            same = [o for o in others if o["category_id"] == box["category_id"]
                    and o["score"] >= IGNORE_BAND[0]]  # fmt: skip
            found += [] if _matches(_xyxy([box]), _xyxy(same))[0] else [box]
    return found


def accepted(rows: list[Row]) -> bool:
    """Return whether both domains were judged and every judged row holds."""
    judged = [row for row in rows if row.verdict != FEW]
    whole = {row.domain for row in judged if row.part == "all"}
    return whole >= {NEW, BASE} and all(row.verdict == HOLDS for row in judged)


def _agreement(new: SplitPredictions, base: SplitPredictions, corrected: set[str]) -> Row:
    """Compare how often labels agree with confident predictions, on the new flight and base."""
    confident, agreeing = _confident_and_agreeing(new, corrected)
    both = (confident, agreeing), _confident_and_agreeing(base, set())
    share, usual = (float(n.sum() / max(1, of.sum())) for of, n in both)
    blocks = _blocks(new)
    effective = effective_blocks(blocks.of_frame, confident)
    least, low, high = AGREEMENT * usual, float("nan"), float("nan")
    verdict = _judgeable(int(confident.sum()), effective)
    if verdict == HOLDS:
        resamples = resample_blocks(blocks.of_frame, RESAMPLES)
        with np.errstate(invalid="ignore"):
            shares = (resamples @ agreeing) / (resamples @ confident)
        low, high = interval(share, shares, effective, CONFIDENCE)
        verdict = WORSE if high <= least else HOLDS
    figures = (usual, share, low, high, least)
    return Row(NEW, LABELS, int(confident.sum()), effective, blocks.unit, True, *figures, verdict)


def _judgeable(objects: int, blocks: float) -> str:
    """Return FEW or FEW_FLIGHTS, or HOLDS if there is enough to judge by."""
    return FEW if objects < MIN_OBJECTS else FEW_FLIGHTS if blocks < MIN_BLOCKS else HOLDS


def _blocks(result: SplitPredictions) -> Blocks:
    """Return the flights or stretches of the used frames."""
    counts = Counter(box["image_id"] for box in result.truth)
    paths = [result.paths[image["id"]] for image in result.images]
    objects = np.array([counts[image["id"]] for image in result.images], np.int64)
    return frame_blocks(paths, MIN_BLOCKS, objects)


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


def _compare(
    domain: str,
    before: SplitPredictions,
    after: SplitPredictions,
    corrected: set[str] | None = None,
) -> list[Row]:
    """Compare two models on a split; ``corrected``: None if all labels are a person's."""
    models = [Matches(r.images, r.truth, r.predictions, r.known) for r in (before, after)]
    blocks = _blocks(before)
    stems = {before.paths[image["id"]].stem for image in before.images}
    frames = _Frames(domain, blocks, corrected is not None and not stems <= corrected)
    # The first resample has every frame once: the plain figure.
    once = np.ones((1, models[0].frames), np.int64)
    resamples = np.vstack([once, resample_blocks(blocks.of_frame, RESAMPLES)])
    rows = []
    for area in AREAS:
        values = [model.precision(area, resamples) for model in models]
        objects = models[0].frame_objects(area)
        enough = objects.sum(axis=1) >= MIN_OBJECTS
        classes = enough if enough.any() else objects.any(axis=1)
        means = [_mean(v[classes]) for v in values]
        whole = area == "all"
        least = (GAIN if domain == NEW else MARGIN) if whole else PART_MARGIN
        rows.append(frames.row(area, objects[classes].sum(axis=0), means, least, enough.any()))
        if whole:
            for k, i in enumerate(before.known):
                own = [v[k] for v in values]
                rows.append(frames.row(before.names[i], objects[k], own, PART_MARGIN, enough[k]))
    return rows


def _mean(values: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is NaN
        return np.nanmean(values, axis=0)


class _Frames(NamedTuple):
    """What the rows of a split have in common; see `Row`."""

    domain: str
    blocks: Blocks
    teacher: bool

    def row(
        self,
        part: str,
        objects: np.ndarray,
        values: list[np.ndarray],
        least: float,
        enough: bool,
    ) -> Row:
        """Judge one part. ``objects``: int64 (F,). ``enough``: of the objects."""
        gains = values[1] - values[0]
        effective = effective_blocks(self.blocks.of_frame, objects)
        low = high = float("nan")
        verdict = _judgeable(MIN_OBJECTS if enough else 0, effective)
        if verdict == HOLDS:
            low, high = interval(float(gains[0]), gains[1:], effective, CONFIDENCE)
            verdict = judge(low, high, least)
        before, after = (float(v[0]) for v in values)
        figures = (before, after, low, high, least)
        return Row(
            *(self.domain, part, int(objects.sum()), effective, self.blocks.unit, self.teacher),
            *figures,
            verdict,
        )


def judge(low: float, high: float, least: float) -> str:
    """Return the verdict on a gain with the interval (low, high) that must be above ``least``."""
    return HOLDS if low > least else WORSE if high <= least else NOT_SHOWN
