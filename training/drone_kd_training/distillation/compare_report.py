# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tables of the paired protocol: arms and their differences, whose unit is the seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from drone_kd.files import write_text
from drone_kd_training.distillation.comparison_text import (
    as_dict,
    measured_lines,
    primary_line,
    secondary_table,
    signed,
)
from drone_kd_training.distillation.paired_comparison import (
    SEED,
    Difference,
    Limits,
    Primary,
    best_difference,
    difference,
    interval,
    mean_by_unit,
    secondary,
)
from drone_kd_training.tables import format_score

PLAIN, DISTILLED, BUILTIN = "plain", "distilled", "builtin"
TIMED = f"{PLAIN}:time"
# The share of a smaller gap between teacher and baseline means nothing, in mAP.
MIN_GAP = 0.03


@dataclass(frozen=True)
class Summary:
    """One arm over all its seeds; scores in [0, 1], 95 % intervals by Student's t over seeds.

    ``gain`` and ``gap_share`` are against the baseline of the same seed; None if it is missing, or
    if there are too few seeds for an interval.
    """

    arm: str
    seeds: int
    mean: float
    spread: float | None
    gain: float | None
    gain_interval: Limits | None
    gap_share: float | None
    time_ratio: float | None


def is_ours(arm: str) -> bool:
    """Return whether an arm is ``distilled`` or that with changes."""
    return arm not in (PLAIN, TIMED) and not arm.startswith(BUILTIN)


def write_tables(
    output: Path, teacher: dict, primary: Primary, rows: Sequence[dict]
) -> list[Summary]:
    """Write compare.md and metrics.json of the finished runs; return the summaries.

    Args:
        output: folder of the experiment.
        teacher: its figures.
        primary: the comparison that was named.
        rows: of all finished runs, at least one.
    """
    summaries = summarise(rows, teacher["map50_95"] or 0.0)
    found = differences(rows, primary)
    named = primary.arm and difference(rows, primary.arm, primary.other, SEED)
    content = {
        "primary": as_dict(primary, named or None),
        "secondary": [asdict(item) for item in found],
        "teacher": teacher,
        "arms": {s.arm: asdict(s) for s in summaries},
        "runs": list(rows),
    }
    first = primary_line(rows, primary, SEED, teacher)
    models = measured_lines(teacher, [row["parameters"] for row in rows])
    write_text(output / "compare.md", as_markdown(first, teacher, summaries, found, models))
    write_text(output / "metrics.json", json.dumps(content, indent=1))
    return summaries


def summarise(rows: Sequence[dict], teacher: float) -> list[Summary]:
    """Return one `Summary` per arm, in the order of the rows; ``teacher``: its mAP50-95."""
    return [
        _summarise_arm(arm, rows, teacher) for arm in dict.fromkeys(row["arm"] for row in rows)
    ]


def _summarise_arm(arm: str, rows: Sequence[dict], teacher: float) -> Summary:
    own, plain = (mean_by_unit(rows, name, SEED) for name in (arm, PLAIN))
    own_time, time = (mean_by_unit(rows, name, SEED, _seconds) for name in (arm, PLAIN))
    pairs = [seed for seed in own if seed in plain]
    scores = list(own.values())
    gains = [own[seed] - plain[seed] for seed in pairs]
    times = [own_time[seed] / time[seed] for seed in pairs if time[seed]]
    compared = bool(pairs) and arm != PLAIN
    gain = float(np.mean(gains)) if compared else None
    mean_gap = float(np.mean([teacher - plain[seed] for seed in pairs])) if pairs else 0.0
    return Summary(
        arm=arm,
        seeds=len(own),
        mean=float(np.mean(scores)),
        spread=float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        gain=gain,
        gain_interval=interval(gains) if compared else None,
        gap_share=gain / mean_gap if gain is not None and mean_gap >= MIN_GAP else None,
        time_ratio=float(np.median(times)) if times else None,
    )


def _seconds(row: dict) -> float:
    return float(row["seconds"])


def differences(rows: Sequence[dict], primary: Primary) -> list[Difference]:
    """Return the secondary comparisons: ours minus the other arms, p values corrected by Holm."""
    names = list(dict.fromkeys(row["arm"] for row in rows))
    if primary.arm is None:  # of several variants: each beside the baseline
        return secondary((difference(rows, n, PLAIN, SEED) for n in names if is_ours(n)), primary)
    ours = primary.arm
    builtin = [name for name in names if name.startswith(BUILTIN)]
    return secondary(
        [
            difference(rows, ours, PLAIN, SEED, "student alone"),
            difference(rows, ours, TIMED, SEED, "student alone for the time of ours"),
            best_difference(rows, ours, builtin, SEED, "built-in distillation"),
            *(difference(rows, ours, n, SEED) for n in names if is_ours(n) and n != ours),
        ],
        primary,
    )


def as_markdown(
    first: str,
    teacher: dict,
    summaries: Sequence[Summary],
    found: Sequence[Difference],
    models: Sequence[str],
) -> str:
    """Return the tables of an experiment.

    Args:
        first: the primary comparison, see `primary_line`.
        teacher: its figures.
        summaries: of the arms.
        found: secondary comparisons.
        models: see `measured_lines`.
    """
    lines = [
        first,
        "",
        "| arm | seeds | mAP50-95 | over plain | gap share | time |",
        "|---|---|---|---|---|---|",
        *(f"| {name} | | {format_score(value)} | | | |" for name, value in teacher_rows(teacher)),
    ]
    for s in summaries:
        spread = "" if s.spread is None else f" ± {100 * s.spread:.1f}"
        gain = "" if s.gain is None else signed(s.gain)
        share = "" if s.gap_share is None else f"{100 * s.gap_share:.0f} %"
        time = "" if s.time_ratio is None else f"{s.time_ratio:.2f}"
        mean = f"{format_score(s.mean)}{spread}"
        lines.append(f"| {s.arm} | {s.seeds} | {mean} | {gain} | {share} | {time} |")
    lines += ["", *secondary_table(found, SEED), "", *models, ""]
    lines.append(
        "Differences are paired by seed; intervals: Student's t over the seeds, uncorrected. They "
        "do not cover other data, other labels or other teachers. ±: standard deviation. time: "
        "against plain."
    )
    return "\n".join(lines) + "\n"


def teacher_rows(teacher: dict) -> list[tuple[str, float | None]]:
    """Return name and mAP50-95 of the teacher, and at the size at which it teaches, if another."""
    large = teacher.get("at_teacher_imgsz")
    rows = [("teacher", teacher["map50_95"])]
    return rows + ([(f"teacher at {large['imgsz']} px", large["map50_95"])] if large else [])
