# SPDX-License-Identifier: AGPL-3.0-or-later
"""Figures of the few-labels protocol: arms, differences, learning curve, each with intervals.

The unit is the label subset: all differences are paired by it, runs of several seeds on one subset
count once, and all intervals are of 95 %. Those of means are by Student's t; those of the gap
share, a ratio of two means, by Fieller's theorem (Fieller 1954), so that the scatter of the gap
counts, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from drone_kd_training.distillation.compare_report import MIN_GAP
from drone_kd_training.distillation.few_labels_arms import ALL, BUILTIN, FEW, FEW_TIME, HARD, OURS
from drone_kd_training.distillation.paired_comparison import (
    SUBSET,
    Difference,
    Limits,
    Primary,
    best_difference,
    difference,
    interval,
    mean_by_unit,
    score,
    secondary,
)


@dataclass(frozen=True)
class ArmFigures:
    """One arm over its subsets; scores in [0, 1], None where there is too little to tell.

    Attributes:
        subsets: number of subsets with a run of it.
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
class CurvePoint:
    """mAP50-95 at a number of labelled frames: mean and interval per arm, None without runs."""

    labels: int
    few: float | None
    few_interval: Limits | None
    ours: float | None
    ours_interval: Limits | None


def compared(rows: Sequence[dict], labels: int) -> list[dict]:
    """Return the rows of the arms that are compared: at so many labels, and with all labels."""
    return [row for row in rows if row["labels"] == labels or row["arm"] == ALL]


def summarise(rows: Sequence[dict], teacher: float) -> list[ArmFigures]:
    """Return the figures of each arm, in the order of the rows.

    ``rows``: of `compared`. ``teacher``: its mAP50-95 at the student's input.
    """
    return [
        _summarise_arm(arm, rows, teacher) for arm in dict.fromkeys(row["arm"] for row in rows)
    ]


def _summarise_arm(arm: str, rows: Sequence[dict], teacher: float) -> ArmFigures:
    own, few = (mean_by_unit(rows, name, SUBSET) for name in (arm, FEW))
    own_time, time = (mean_by_unit(rows, name, SUBSET, _step_time) for name in (arm, FEW))
    pairs = [subset for subset in own if subset in few]
    scores = list(own.values())
    gains = [own[subset] - few[subset] for subset in pairs]
    gaps = [teacher - few[subset] for subset in pairs]
    times = [own_time[subset] / time[subset] for subset in pairs if time[subset]]
    told = bool(pairs) and arm != FEW
    wide = told and float(np.mean(gaps)) >= MIN_GAP
    steps = mean_by_unit(rows, arm, SUBSET, lambda row: row["steps"])
    half = mean_by_unit(rows, arm, SUBSET, lambda row: row["map50"] or 0.0)
    return ArmFigures(
        arm=arm,
        subsets=len(own),
        steps=float(np.mean([*steps.values()])),
        mean=float(np.mean(scores)),
        map50=float(np.mean([*half.values()])),
        spread=float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        gain=float(np.mean(gains)) if told else None,
        gain_interval=interval(gains) if told else None,
        gap_share=float(np.mean(gains) / np.mean(gaps)) if wide else None,
        gap_share_interval=ratio_interval(gains, gaps) if wide else None,
        step_time=float(np.median(times)) if times else None,
    )


def _step_time(row: dict) -> float:
    return float(row["seconds"] / row["steps"])


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


def differences(rows: Sequence[dict], primary: Primary) -> list[Difference]:
    """Return the secondary comparisons: ours minus the arms that matter, p corrected by Holm.

    Of several thresholds, weights and lengths the one with the best mean on these rows counts, in
    favour of that arm. ``rows``: of `compared`.
    """
    names = list(dict.fromkeys(row["arm"] for row in rows))
    ours = primary.arm
    if ours is None:  # of several variants: each beside the arm that was named
        variants = (difference(rows, n, primary.other, SUBSET) for n in names if is_ours(n))
        return secondary(variants, primary)
    kinds = {
        "student alone": [FEW],
        "student alone at its best length": [n for n in names if n.split(":")[0] == FEW],
        "student alone for the time of ours": [FEW_TIME],
        "hard pseudo-labels": [n for n in names if n.split(":")[0] == HARD],
        "built-in distillation": [n for n in names if n.startswith(BUILTIN)],
        "student alone with all labels": [ALL],
    }
    found = [best_difference(rows, ours, arms, SUBSET, role) for role, arms in kinds.items()]
    found += [difference(rows, ours, n, SUBSET) for n in names if is_ours(n) and n != ours]
    return secondary(found, primary)


def is_ours(arm: str) -> bool:
    """Return whether an arm is ``ours`` or that with changes."""
    return arm.split(";")[0] == OURS


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
    subsets: dict[int, list[float]] = {}
    for row in rows:
        subsets.setdefault(row["subset"], []).append(score(row))
    means = [float(np.mean(scores)) for scores in subsets.values()]
    return (float(np.mean(means)), interval(means)) if means else (None, None)
