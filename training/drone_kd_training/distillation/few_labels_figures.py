# SPDX-License-Identifier: AGPL-3.0-or-later
"""Differences and learning curve of the few-labels protocol, each with intervals.

The unit is the label subset: all differences are paired by it, runs of several seeds on one subset
count once, and all intervals are of 95 %, by Student's t. Figures of single arms: `arm_figures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drone_kd_training.distillation.few_labels_arms import ALL, BUILTIN, FEW, FEW_TIME, HARD, OURS
from drone_kd_training.distillation.paired_comparison import (
    SUBSET,
    Difference,
    Limits,
    Primary,
    best_difference,
    difference,
    interval,
    score,
    secondary,
)


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
        if (found := score(row)) is not None:
            subsets.setdefault(row["subset"], []).append(found)
    means = [float(np.mean(scores)) for scores in subsets.values()]
    return (float(np.mean(means)), interval(means)) if means else (None, None)
