# SPDX-License-Identifier: AGPL-3.0-or-later
"""Figures of each arm of an experiment beside its baseline, and their table, for both protocols.

The unit is the seed or the label subset. Gains are paired by it, runs of several seeds on one
subset count once, and runs without a score count nowhere. All intervals are of 95 %: those of
means by Student's t, those of the gap share, a ratio of two means, by Fieller's theorem (Fieller
1954), so that the scatter of the gap counts, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from drone_kd_training.distillation.comparison_text import signed
from drone_kd_training.distillation.paired_comparison import Limits, interval, mean_by_unit
from drone_kd_training.tables import format_score

# The share of a smaller gap between teacher and baseline means nothing, in mAP.
MIN_GAP = 0.03


@dataclass(frozen=True)
class ArmFigures:
    """One arm over its units; scores in [0, 1], None where there is too little to tell.

    Attributes:
        units: seeds or subsets with a scored run of it.
        steps: of a run, mean; None: the trainer chose the batch.
        mean, map50: mean mAP50-95 and mAP50.
        spread: standard deviation of the mAP50-95.
        gain: mean difference to the baseline of the same unit.
        gap_share: mean gain by the mean gap between baseline and teacher.
        time_ratio: training time of a run against the baseline, median.
    """

    arm: str
    units: int
    steps: float | None
    mean: float | None
    map50: float | None
    spread: float | None
    gain: float | None
    gain_interval: Limits | None
    gap_share: float | None
    gap_share_interval: Limits | None
    time_ratio: float | None


def summarise(rows: Sequence[dict], teacher: float, baseline: str, unit: str) -> list[ArmFigures]:
    """Return the figures of each arm, in the order of the rows.

    Args:
        rows: of the arms that are compared.
        teacher: its mAP50-95 at the student's input.
        baseline: name of the student alone.
        unit: SUBSET or SEED.
    """
    arms = dict.fromkeys(row["arm"] for row in rows)
    return [_of_arm(arm, rows, teacher, baseline, unit) for arm in arms]


def _of_arm(
    arm: str, rows: Sequence[dict], teacher: float, baseline: str, unit: str
) -> ArmFigures:
    own, alone = (mean_by_unit(rows, name, unit) for name in (arm, baseline))
    own_time, time = (mean_by_unit(rows, n, unit, lambda r: r["seconds"]) for n in (arm, baseline))
    half = mean_by_unit(rows, arm, unit, lambda row: row["map50"])
    steps = mean_by_unit(rows, arm, unit, lambda row: row["steps"])
    pairs = [key for key in own if key in alone] if arm != baseline else []
    gains = [own[key] - alone[key] for key in pairs]
    gaps = [teacher - alone[key] for key in pairs]
    wide = bool(pairs) and float(np.mean(gaps)) >= MIN_GAP
    times = [own_time[key] / time[key] for key in own_time if time.get(key)]
    return ArmFigures(
        arm=arm,
        units=len(own),
        steps=_mean(steps.values()),
        mean=_mean(own.values()),
        map50=_mean(half.values()),
        spread=float(np.std([*own.values()], ddof=1)) if len(own) > 1 else None,
        gain=_mean(gains),
        gain_interval=interval(gains),
        gap_share=float(np.mean(gains) / np.mean(gaps)) if wide else None,
        gap_share_interval=ratio_interval(gains, gaps) if wide else None,
        time_ratio=float(np.median(times)) if times else None,
    )


def _mean(values: Iterable[float]) -> float | None:
    found = [*values]
    return float(np.mean(found)) if found else None


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


def arm_table(teacher: dict, arms: Sequence[ArmFigures], baseline: str, unit: str) -> list[str]:
    """Return the table of the teacher and the arms; arguments as of `summarise`."""
    lines = [
        f"| arm | {unit}s | steps | mAP50-95 | mAP50 | over {baseline} | gap share [95 %] "
        "| time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, figures in teacher_rows(teacher):
        scores = (format_score(figures.get(key)) for key in ("map50_95", "map50"))
        lines.append(f"| {name} | | | {' | '.join(scores)} | | | |")
    for arm in arms:
        steps = "" if arm.steps is None else f"{arm.steps:.0f}"
        spread = "" if arm.spread is None else f" ± {100 * arm.spread:.1f}"
        gain = "" if arm.gain is None else signed(arm.gain)
        share = "" if arm.gap_share is None else f"{100 * arm.gap_share:.0f} %"
        if arm.gap_share_interval:
            share += " [{:.0f}, {:.0f}]".format(*(100 * x for x in arm.gap_share_interval))
        time = "" if arm.time_ratio is None else f"{arm.time_ratio:.2f}"
        lines.append(
            f"| {arm.arm} | {arm.units} | {steps} | {format_score(arm.mean)}{spread} | "
            f"{format_score(arm.map50)} | {gain} | {share} | {time} |"
        )
    return lines


def teacher_rows(teacher: dict) -> list[tuple[str, dict]]:
    """Return name and figures of the teacher, and of it at the size at which it teaches."""
    large = teacher.get("at_teacher_imgsz")
    rows = [("teacher", teacher)]
    return rows + ([(f"teacher at {large['imgsz']} px", large)] if large else [])
