# SPDX-License-Identifier: AGPL-3.0-or-later
"""Lines and tables of paired comparisons, classes and sizes included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from drone_kd.text import one_line
from drone_kd_training.distillation.experiment_plan import Plan, deviations, unscored
from drone_kd_training.distillation.paired_comparison import (
    Difference,
    Limits,
    Primary,
    difference,
)

_SHOWN = 12


def primary_line(
    rows: Sequence[dict],
    primary: Primary,
    unit: str,
    teacher: dict,
    now: Plan | None = None,
    experiment: Sequence[dict] = (),
    left_out: Sequence[str] = (),
) -> str:
    """Return the primary comparison with interval, n, classes and input size, in one line.

    The line says, too, what is not as planned before the first run.

    Args:
        rows: of the arms that are compared.
        primary: what was named.
        unit: SUBSET or SEED.
        teacher: its figures.
        now: plan of this call, beside that of ``primary``; None: not checked.
        experiment: see `deviations`.
        left_out: names of finished runs of earlier calls that are not compared.
    """
    line = _comparison(rows, primary, unit, teacher)
    notes = _plan_notes(rows, primary, now, experiment)
    if left_out:
        listed = one_line(", ".join(left_out[:_SHOWN]), 200)
        notes.append(f"{plural(len(left_out), 'finished run')} not compared here: {listed}")
    if missing := unscored(rows):
        notes.append(f"without a score, so not counted: {one_line(', '.join(missing), 200)}")
    return "; ".join([line, *notes])


def _plan_notes(
    rows: Sequence[dict], primary: Primary, now: Plan | None, experiment: Sequence[dict]
) -> list[str]:
    if now is None or primary.runs_before:
        return []
    if primary.plan is None:
        return ["no plan of seeds and arms was stored before the first run"]
    arms = [primary.arm, primary.other] if primary.arm else []
    found = deviations(primary.plan, now, rows, arms, experiment)
    return [f"NOT AS PLANNED: {', '.join(found)}"] if found else []


def _comparison(rows: Sequence[dict], primary: Primary, unit: str, teacher: dict) -> str:
    head = f"No primary comparison ({primary.refusal})" if primary.refusal else "Primary"
    if primary.arm is None:
        return head
    names = one_line(f"{primary.arm} - {primary.other}", 200)
    found = difference(rows, primary.arm, primary.other, unit)
    if found is None:
        return f"{head}: {names}, no pair of runs yet"
    classes = counted_classes(teacher)
    listed = one_line(", ".join(classes), 200) or "none has an object"
    share = f"{100 * primary.select:g} %"
    where = f", on {share} of train, for choosing settings" if primary.select else ""
    return (
        f"{head}: {names} = {points(found)}, n = {plural(found.units, unit)}, mAP50-95 on "
        f"{plural(len(classes), 'class')} ({listed}), {teacher['imgsz']} px{where}"
    )


def secondary_table(found: Sequence[Difference], unit: str) -> list[str]:
    """Return the table of secondary comparisons, p values already corrected; [] without any."""
    if not found:
        return []
    lines = [f"| secondary comparison | points [95 %] | n ({unit}s) | p (Holm) | other arm |"]
    lines.append("|---|---|---|---|---|")
    for item in found:
        chosen = f"best of {item.candidates} on this split, in its favour"
        notes = [item.role, *([chosen] if item.candidates > 1 else [])]
        p = "" if item.p is None else "< 0.001" if item.p < 0.0005 else f"{item.p:.3f}"
        text = f"{item.arm} - {item.other} | {points(item, '')} | {item.units} | {p}"
        lines.append(f"| {text} | {'; '.join(filter(None, notes))} |")
    return lines


def points(found: Difference, unit: str = " points") -> str:
    """Return a difference in points of mAP, e.g. "+2.1 points [+0.4, +3.8]"."""
    between = f" {limits(found.interval)}" if found.interval else ""
    return f"{signed(found.mean)}{unit}{between}"


def limits(interval: Limits) -> str:
    """Return an interval of scores in [0, 1] in points, e.g. "[-0.3, +1.2]"."""
    return f"[{', '.join(map(signed, interval))}]"


def signed(score: float) -> str:
    """Return a difference of scores in [0, 1] in points, e.g. "+2.1"; "+0.0" for no difference."""
    return f"{round(100 * score, 1) + 0.0:+.1f}"  # -0.0 + 0.0 is 0.0


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, e.g. "5 subsets"."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count} {noun}{ending}"


def counted_classes(teacher: dict) -> list[str]:
    """Return the classes of the means: those that the teacher has, with a labelled object."""
    return [name for name, ap in teacher["per_class"].items() if ap["ap50_95"] is not None]


def measured_lines(teacher: dict, parameters: Sequence[int]) -> list[str]:
    """Return the sizes of both models and of their inputs, and the classes that do not count.

    ``parameters``: of the students.
    """
    large = teacher.get("at_teacher_imgsz")
    teaches = f"; the teacher teaches at {large['imgsz']} px" if large else ""
    students = "".join(f", student {count / 1e6:.1f} M" for count in dict.fromkeys(parameters))
    lines = [
        f"Teacher {teacher['parameters'] / 1e6:.1f} M parameters{students}; both measured at "
        f"{teacher['imgsz']} px{teaches}."
    ]
    empty = [n for n, ap in teacher["per_class"].items() if ap["ap50_95"] is None]
    left_out = {"not a class of the teacher": teacher["classes_not_in_model"], "no object": empty}
    if any(left_out.values()):
        reasons = [f"{one_line(', '.join(n), 200)} ({why})" for why, n in left_out.items() if n]
        lines.append(f"Classes that count for no model: {'; '.join(reasons)}.")
    return lines


def as_dict(primary: Primary, found: Difference | None) -> dict[str, Any]:
    """Return the primary comparison for metrics.json."""
    return {
        "named": asdict(primary),
        "refusal": primary.refusal,
        "difference": found and asdict(found),
    }
