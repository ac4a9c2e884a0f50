# SPDX-License-Identifier: AGPL-3.0-or-later
"""Figures of the few-labels protocol: arms, differences, learning curve, each with intervals.

The unit is the label subset: all differences are paired by it, and all intervals are of 95 %.
Those of means are by Student's t; those of the gap share, a ratio of two means, by Fieller's
theorem (Fieller 1954), so that the scatter of the gap counts, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from drone_kd_training.distillation.compare import MIN_GAP, interval
from drone_kd_training.distillation.few_labels_arms import ALL, BUILTIN, FEW, FEW_TIME, HARD, OURS

Limits = tuple[float, float]


@dataclass(frozen=True)
class ArmFigures:
    """One arm over its subsets; scores in [0, 1], None where there is too little to tell.

    Attributes:
        subsets: number of its runs.
        steps: of a run, mean.
        mean, map50: mean mAP50-95 and mAP50.
        spread: standard deviation of the mAP50-95.
        gain: mean difference to the arm ``few`` on the same subset.
        gap_share: mean gain by the mean gap between ``few`` and the teacher.
        step_time: seconds per step against those of ``few``, median.
    """

    arm: str
    subsets: int
    steps: float
    mean: float
    map50: float
    spread: float | None
    gain: float | None
    gain_interval: Limits | None
    gap_share: float | None
    gap_share_interval: Limits | None
    step_time: float | None


@dataclass(frozen=True)
class Difference:
    """mAP50-95 of ours minus that of another arm, over the subsets that both have.

    ``role``: what the other arm is, "" for ours with a change.
    """

    arm: str
    role: str
    subsets: int
    mean: float
    interval: Limits | None


@dataclass(frozen=True)
class CurvePoint:
    """mAP50-95 at a number of labelled frames: mean and interval per arm, None without runs."""

    labels: int
    few: float | None
    few_interval: Limits | None
    ours: float | None
    ours_interval: Limits | None


def score(row: dict) -> float:
    """Return the mAP50-95 of a run, 0 without any ground truth."""
    return row["map50_95"] or 0.0


def compared(rows: Sequence[dict], labels: int) -> list[dict]:
    """Return the rows of the arms that are compared: at so many labels, and with all labels."""
    return [row for row in rows if row["labels"] == labels or row["arm"] == ALL]


def summarise(rows: Sequence[dict], teacher: float) -> list[ArmFigures]:
    """Return the figures of each arm, in the order of the rows.

    ``rows``: of `compared`. ``teacher``: its mAP50-95 at the student's input.
    """
    few = by_subset(rows, FEW)
    return [
        _summarise_arm(arm, by_subset(rows, arm), few, teacher)
        for arm in dict.fromkeys(row["arm"] for row in rows)
    ]


def by_subset(rows: Sequence[dict], arm: str) -> dict[int, dict]:
    """Return the runs of an arm by subset."""
    return {row["subset"]: row for row in rows if row["arm"] == arm}


def _summarise_arm(
    arm: str, own: dict[int, dict], few: dict[int, dict], teacher: float
) -> ArmFigures:
    scores = [score(row) for row in own.values()]
    pairs = [(row, few[subset]) for subset, row in own.items() if subset in few]
    gains = [score(row) - score(base) for row, base in pairs]
    gaps = [teacher - score(base) for _, base in pairs]
    times = [
        row["seconds"] / row["steps"] / (base["seconds"] / base["steps"])
        for row, base in pairs
        if base["seconds"]
    ]
    told = bool(pairs) and arm != FEW
    wide = told and float(np.mean(gaps)) >= MIN_GAP
    return ArmFigures(
        arm=arm,
        subsets=len(own),
        steps=float(np.mean([row["steps"] for row in own.values()])),
        mean=float(np.mean(scores)),
        map50=float(np.mean([row["map50"] or 0.0 for row in own.values()])),
        spread=float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        gain=float(np.mean(gains)) if told else None,
        gain_interval=interval(gains) if told else None,
        gap_share=float(np.mean(gains) / np.mean(gaps)) if wide else None,
        gap_share_interval=ratio_interval(gains, gaps) if wide else None,
        step_time=float(np.median(times)) if times else None,
    )


def ratio_interval(above: Sequence[float], below: Sequence[float]) -> Limits | None:
    """Return the 95 % interval of the ratio of two means of pairs, by Fieller's theorem.

    None for fewer than two pairs, or where the mean ``below`` may be 0, so that there are no
    limits.
    """
    n = len(above)
    if n < 2:
        return None
    covariance = np.cov(above, below) / n * float(stats.t.ppf(0.975, n - 1)) ** 2
    top, bottom = float(np.mean(above)), float(np.mean(below))
    a = bottom**2 - float(covariance[1, 1])
    b = top * bottom - float(covariance[0, 1])
    c = top**2 - float(covariance[0, 0])
    root = b**2 - a * c
    if a <= 0 or root < 0:
        return None
    half = math.sqrt(root) / a
    return b / a - half, b / a + half


def differences(rows: Sequence[dict]) -> list[Difference]:
    """Return ours minus each of the arms that matter; ``rows``: of `compared`.

    Of several thresholds, weights and lengths the one with the best mean counts, in favour of that
    arm.
    """
    names = list(dict.fromkeys(row["arm"] for row in rows))
    roles = {
        "student alone": [FEW],
        "student alone at its best length": [n for n in names if n.split(":")[0] == FEW],
        "student alone for the time of ours": [FEW_TIME],
        "best hard pseudo-labels": [n for n in names if n.split(":")[0] == HARD],
        "best built-in distillation": [n for n in names if n.startswith(BUILTIN)],
        "student alone with all labels": [ALL],
    }
    others: dict[str, str] = {}
    for role, arms in roles.items():
        if arm := best(rows, arms):
            others.setdefault(arm, role)  # few itself may have the best length
    found = [_difference(rows, arm, role) for arm, role in others.items()]
    found += [_difference(rows, name, "") for name in names if name.startswith(f"{OURS};")]
    return [difference for difference in found if difference is not None]


def best(rows: Sequence[dict], arms: Sequence[str]) -> str | None:
    """Return the arm with the best mean, among those with the most subsets; None without rows."""
    found = {arm: [score(row) for row in by_subset(rows, arm).values()] for arm in arms}
    most = max(map(len, found.values()), default=0)
    means = {arm: float(np.mean(s)) for arm, s in found.items() if most and len(s) == most}
    return max(means, key=lambda arm: means[arm], default=None)


def _difference(rows: Sequence[dict], arm: str, role: str) -> Difference | None:
    ours, other = by_subset(rows, OURS), by_subset(rows, arm)
    found = [score(row) - score(other[subset]) for subset, row in ours.items() if subset in other]
    if not found:
        return None
    return Difference(arm, role, len(found), float(np.mean(found)), interval(found))


def learning_curve(rows: Sequence[dict]) -> list[CurvePoint]:
    """Return the points of the learning curve, the student alone with all labels included."""
    return [
        CurvePoint(
            labels,
            *_mean([row for row in rows if row["labels"] == labels and row["arm"] in (FEW, ALL)]),
            *_mean([row for row in rows if row["labels"] == labels and row["arm"] == OURS]),
        )
        for labels in sorted({row["labels"] for row in rows})
    ]


def _mean(rows: Sequence[dict]) -> tuple[float | None, Limits | None]:
    scores = [score(row) for row in rows]
    return (float(np.mean(scores)), interval(scores)) if scores else (None, None)
