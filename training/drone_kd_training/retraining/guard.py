# SPDX-License-Identifier: AGPL-3.0-or-later
"""Is the candidate better on the new flight, and nowhere worse? What it is not shown, it refuses.

Both models are run over the same frames, and both scores are taken again and again over frames
drawn anew from these (`retraining.bootstrap`): the interval of their difference says what other
frames of the same kind might have shown.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from drone_kd.core.boxes import iou
from drone_kd_training.evaluation.evaluate import Answers, answer
from drone_kd_training.retraining.bootstrap import AREAS, Matches, draw_frames
from drone_kd_training.tables import format_score
from drone_kd_training.teachers.soft_labels import IGNORE_BAND
from drone_kd_training.teachers.teachers import Predictions

DRAWS = 1000
CONFIDENCE = 0.95
# What the lower end of the interval must be above, mAP50-95 in [0, 1]: of the new flight as a
# whole, of the base as a whole, and of every class and size of either (fewer objects, so that
# less can be shown of them).
GAIN, MARGIN, PART_MARGIN = 0.0, -0.01, -0.03
# A class of fewer objects (of a size, where it is about a size) does not count: it is shown, but
# neither judged nor in a mean.
FEWEST_OBJECTS = 50
# The teacher's labels can be wrong in the frames to judge by as in those to learn from: no gain on
# them says so. What the flying model is sure of is to be labelled so at least this many times as
# often as it is in the base.
AGREEMENT = 0.5
LABELS = "labels"
# From this overlap on an answer is about a box, as in mAP50.
ABOUT_IOU = 0.5

HOLDS, WORSE, UNSHOWN, FEW = "holds", "worse", "not shown", "too few objects"


@dataclass(frozen=True)
class Row:
    """One comparison: ``domain`` "new" or "base", ``part`` "all", a class or a size; mAP50-95 in
    [0, 1], the interval of the gain, and what its lower end must be above.

    Of the part "labels": ``objects`` that the flying model is sure of, the shares of them that are
    labelled so in the base (``before``) and on the new flight (``after``, ``low``, ``high``).
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
    before, after, base: Path, mined: Path, answers: Predictions, corrected: set[str]
) -> list[Row]:
    """Compare two models on the validation splits of the base and of the mined frames.

    Args:
        before, after: what `evaluation.evaluate.evaluate` takes.
        base, mined: data.yaml.
        answers: of the teacher to the mined frames: what it is unsure of is left out there.
        corrected: stems of the frames whose labels are a person's, and complete.

    Raises:
        DataError, UnusableModelError: see `evaluation.evaluate.evaluate`.
    """
    found = {
        domain: [answer(model, data) for model in (before, after)]
        for domain, data in (("new", mined), ("base", base))
    }
    found["new"] = [leave_out_unsure(a, answers, corrected) for a in found["new"]]
    rows = [row for domain, both in found.items() for row in _compare(domain, *both)]
    return [*rows, _agreement(found["new"][0], found["base"][0], corrected)]


def accepted(rows: list[Row]) -> bool:
    """Whether everything that is judged holds, and something is."""
    judged = [row for row in rows if row.verdict != FEW]
    whole = {row.domain for row in judged if row.part == "all"}
    return whole == {"new", "base"} and all(row.verdict == HOLDS for row in judged)


def _agreement(new: Answers, base: Answers, corrected: set[str]) -> Row:
    """Do the teacher's labels say what the flying model is sure of?"""
    sure, labelled = _sure_and_labelled(new, corrected)
    share, usual = (
        float(n.sum() / max(1, of.sum()))
        for of, n in ((sure, labelled), _sure_and_labelled(base, set()))
    )
    least, low, high, verdict = AGREEMENT * usual, float("nan"), float("nan"), FEW
    if sure.sum() >= FEWEST_OBJECTS:
        draws = draw_frames(len(sure), DRAWS)
        with np.errstate(invalid="ignore"):
            low, high = _interval((draws @ labelled) / (draws @ sure))
        verdict = WORSE if high <= least else HOLDS
    return Row("new", LABELS, int(sure.sum()), usual, share, low, high, least, verdict)


def _sure_and_labelled(found: Answers, corrected: set[str]) -> tuple[np.ndarray, np.ndarray]:
    """How many answers are sure in each frame that no person labelled, and how many of them are
    about a label of their class: int64 (F,).
    """
    numbers = {image["id"]: k for k, image in enumerate(found.images)}
    counts = np.zeros((2, len(numbers)), np.int64)
    truth: dict[int, list[dict]] = {}
    for box in found.truth:
        truth.setdefault(box["image_id"], []).append(box)
    for box in found.found:
        frame = box["image_id"]
        if box["score"] <= IGNORE_BAND[1] or found.paths[frame].stem in corrected:
            continue
        same = [t for t in truth.get(frame, []) if t["category_id"] == box["category_id"]]
        about = iou(_xyxy([box]), _xyxy(same)).max(initial=0.0) >= ABOUT_IOU
        counts[:, numbers[frame]] += (1, about)
    return counts[0], counts[1]


def leave_out_unsure(found: Answers, answers: Predictions, corrected: set[str]) -> Answers:
    """Drop what a model found where the teacher was unsure: neither a hit nor a false alarm.

    An answer that is about a label stays, whatever the teacher was unsure of beside it.
    """
    kept = []
    by_frame: dict[int, tuple[list, list]] = {image["id"]: ([], []) for image in found.images}
    for number, boxes in enumerate((found.truth, found.found)):
        for box in boxes:
            by_frame[box["image_id"]][number].append(box)
    for image in found.images:
        truth, own = by_frame[image["id"]]
        stem = found.paths[image["id"]].stem
        boxes, scores = answers.found.get(stem, (np.zeros((0, 4)), np.zeros((0, 1))))
        best = scores.max(axis=1, initial=0.0)
        unsure = boxes[(best >= IGNORE_BAND[0]) & (best <= IGNORE_BAND[1])]
        if stem in corrected or not len(unsure) or not own:
            kept += own
            continue
        size = np.array([image["width"], image["height"]] * 2)
        band = np.hstack([unsure[:, :2] - unsure[:, 2:] / 2, unsure[:, :2] + unsure[:, 2:] / 2])
        looked_at = _xyxy(own)
        about_band = iou(looked_at, (band * size).astype(np.float32)).max(axis=1) >= ABOUT_IOU
        about_label = iou(looked_at, _xyxy(truth)).max(axis=1, initial=0.0) >= ABOUT_IOU
        kept += [box for box, drop in zip(own, about_band & ~about_label, strict=True) if not drop]
    return replace(found, found=kept)


def _xyxy(annotations: list[dict]) -> np.ndarray:
    boxes = np.array([a["bbox"] for a in annotations], np.float32).reshape(-1, 4)
    return np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])


def _compare(domain: str, before: Answers, after: Answers) -> list[Row]:
    models = [Matches(a.images, a.truth, a.found, a.known) for a in (before, after)]
    frames = models[0].frames
    # The first draw is of every frame once: the plain figure.
    draws = np.vstack([np.ones((1, frames), np.int64), draw_frames(frames, DRAWS)])
    rows = []
    for area in AREAS:
        values = [model.precision(area, draws) for model in models]
        objects = models[0].objects(area)
        counts = objects >= FEWEST_OBJECTS
        classes = counts if counts.any() else objects > 0
        means = [_mean(v[classes]) for v in values]
        whole = area == "all"
        least = (GAIN if domain == "new" else MARGIN) if whole else PART_MARGIN
        rows.append(_row(domain, area, objects[classes].sum(), means, least, counts.any()))
        if whole:
            rows += [
                _row(domain, name, objects[k], [v[k] for v in values], PART_MARGIN, counts[k])
                for k, name in enumerate(before.names[i] for i in before.known)
            ]
    return rows


def _mean(values: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of nothing, the mean is NaN
        return np.nanmean(values, axis=0)


def _row(
    domain: str, part: str, objects: int, values: list[np.ndarray], least: float, counts: bool
) -> Row:
    gains = values[1] - values[0]
    low = high = float("nan")
    verdict = FEW
    if counts:
        low, high = _interval(gains[1:])
        verdict = HOLDS if low > least else WORSE if high <= least else UNSHOWN
    before, after = (float(v[0]) for v in values)
    return Row(domain, part, int(objects), before, after, low, high, least, verdict)


def _interval(values: np.ndarray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(values, (tail, 1 - tail))
    return float(low), float(high)


def as_table(rows: list[Row]) -> str:
    """The comparisons as text, mAP50-95 in points, one line each."""
    lines = [
        f"{'mAP50-95':<22}{'objects':>8}{'before':>8}{'after':>8}{'gain':>7}"
        f"{'95 %':>16}{'must be':>12}"
    ]
    for row in rows:
        if row.part == LABELS:
            lines.append(
                f"of {row.objects} boxes that the flying model is sure of in new frames "
                f"{100 * row.after:.0f} % are labelled so (base: {100 * row.before:.0f} %; at "
                f"least {100 * row.least:.0f} %)  {row.verdict}"
            )
            continue
        figures = [None if np.isnan(x) else x for x in (row.before, row.after)]
        line = f"{row.domain + ' ' + row.part:<22}{row.objects:>8}"
        line += "".join(f"{format_score(x):>8}" for x in figures)
        if row.verdict == FEW:
            lines.append(f"{line}{'':>35}  {row.verdict}")
            continue
        interval = f"[{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
        line += f"{100 * (row.after - row.before):>+7.1f}{interval:>16}"
        lines.append(f"{line}{f'> {100 * row.least:+.1f}':>12}  {row.verdict}")
    return "\n".join(lines)


def as_dicts(rows: list[Row]) -> list[dict]:
    """The comparisons for JSON, which has no NaN."""
    return [
        {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in asdict(row).items()}
        for row in rows
    ]
