# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tables of the paired protocol: arms and their differences, whose unit is the seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from drone_kd.files import write_text
from drone_kd_training.distillation.arm_figures import ArmFigures, arm_table, summarise
from drone_kd_training.distillation.comparison_text import (
    as_dict,
    measured_lines,
    primary_line,
    secondary_table,
)
from drone_kd_training.distillation.experiment_plan import Plan
from drone_kd_training.distillation.paired_comparison import (
    SEED,
    Difference,
    Primary,
    best_difference,
    difference,
    secondary,
)

PLAIN, DISTILLED, BUILTIN = "plain", "distilled", "builtin"
TIMED = f"{PLAIN}:time"


def is_ours(arm: str) -> bool:
    """Return whether an arm is ``distilled`` or that with changes."""
    return arm not in (PLAIN, TIMED) and not arm.startswith(BUILTIN)


def write_tables(
    output: Path,
    teacher: dict,
    primary: Primary,
    rows: Sequence[dict],
    now: Plan,
    left_out: Sequence[str] = (),
) -> list[ArmFigures]:
    """Write compare.md and metrics.json of the finished runs; return the figures of the arms.

    Args:
        output: folder of the experiment.
        teacher: its figures.
        primary: the comparison that was named.
        rows: of all finished runs, at least one.
        now: plan of this call.
        left_out: names of finished runs of earlier calls that this one leaves out.
    """
    summaries = summarise(rows, teacher["map50_95"], PLAIN, SEED)
    found = differences(rows, primary)
    named = primary.arm and difference(rows, primary.arm, primary.other, SEED)
    content = {
        "primary": as_dict(primary, named or None),
        "secondary": [asdict(item) for item in found],
        "teacher": teacher,
        "arms": {s.arm: asdict(s) for s in summaries},
        "runs": list(rows),
    }
    first = primary_line(rows, primary, SEED, teacher, now, left_out=left_out)
    models = measured_lines(teacher, [row["parameters"] for row in rows])
    write_text(output / "compare.md", as_markdown(first, teacher, summaries, found, models))
    write_text(output / "metrics.json", json.dumps(content, indent=1))
    return summaries


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
    summaries: Sequence[ArmFigures],
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
        *arm_table(teacher, summaries, PLAIN, SEED),
    ]
    lines += ["", *secondary_table(found, SEED), "", *models, ""]
    lines.append(
        "Differences are paired by seed; intervals: Student's t over the seeds, uncorrected, "
        "of the gap share Fieller's. They do not cover other data, other labels or other "
        "teachers. ±: standard deviation. time: of a run, against plain."
    )
    return "\n".join(lines) + "\n"
