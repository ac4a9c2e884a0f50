# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tables, learning curve and page of the few-labels protocol."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drone_kd.files import atomic_file, write_text
from drone_kd_training.data.dataset import DataSet
from drone_kd_training.distillation.arm_figures import ArmFigures, arm_table, summarise
from drone_kd_training.distillation.compare import scores_over
from drone_kd_training.distillation.comparison_text import (
    as_dict,
    counted_classes,
    measured_lines,
    primary_line,
    secondary_table,
)
from drone_kd_training.distillation.experiment_plan import Plan
from drone_kd_training.distillation.few_labels_arms import ALL, FEW, OURS
from drone_kd_training.distillation.few_labels_figures import (
    CurvePoint,
    compared,
    differences,
    learning_curve,
)
from drone_kd_training.distillation.paired_comparison import (
    SUBSET,
    Difference,
    Limits,
    Primary,
    difference,
)
from drone_kd_training.distillation.run_report import read_metrics
from drone_kd_training.html_report import compare_frames, write_report
from drone_kd_training.tables import as_csv, format_score

CURVE = "learning-curve.png"


def write_tables(
    output: Path,
    teacher: dict,
    primary: Primary,
    rows: Sequence[dict],
    now: Plan,
) -> dict[str, Any]:
    """Write compare.csv, compare.md and metrics.json.

    Args:
        output: folder of the experiment.
        teacher: its figures.
        primary: the comparison that was named.
        rows: of all finished runs, at least one.
        now: plan of this call; its arms come first.

    Returns:
        The content of metrics.json, scores in [0, 1].
    """
    labels = now.compared_labels
    place = {arm: number for number, arm in enumerate(now.arms)}
    own = sorted(compared(rows, labels), key=lambda row: place.get(row["arm"], len(place)))
    arms = summarise(own, teacher["map50_95"], FEW, SUBSET)
    found, curve = differences(own, primary), learning_curve(rows)
    named = primary.arm and difference(own, primary.arm, primary.other, SUBSET)
    content = {
        "primary": as_dict(primary, named or None),
        "secondary": [asdict(item) for item in found],
        "teacher": teacher,
        "labels": labels,
        "arms": {arm.arm: asdict(arm) for arm in arms},
        "learning_curve": [asdict(point) for point in curve],
        "runs": list(rows),
    }
    write_text(output / "compare.csv", as_csv(list(rows)))
    first = primary_line(own, primary, SUBSET, teacher, now, rows)
    models = measured_lines(teacher, [row["parameters"] for row in own])
    text = as_markdown(first, teacher, labels, arms, found, models)
    write_text(output / "compare.md", f"{text}\n{curve_table(curve)}")
    write_text(output / "metrics.json", json.dumps(content, indent=1))
    return content


def as_markdown(
    first: str,
    teacher: dict,
    labels: int,
    arms: Sequence[ArmFigures],
    found: Sequence[Difference],
    models: Sequence[str],
) -> str:
    """Return the tables of the arms and of the secondary comparisons.

    Args:
        first: the primary comparison, see `primary_line`.
        teacher: its figures.
        labels: labelled frames of the arms.
        arms: their figures.
        found: secondary comparisons.
        models: see `measured_lines`.
    """
    lines = [
        first,
        "",
        *arm_table(teacher, arms, FEW, SUBSET),
    ]
    lines += ["", *secondary_table(found, SUBSET), "", *models, ""]
    lines.append(
        f"{labels} labelled frames per subset. Differences are paired by subset; intervals: "
        "Student's t over the subsets, uncorrected, of the gap share Fieller's. They do not cover "
        "other data or other teachers. ±: standard deviation. time: of a run, against few."
    )
    return "\n".join(lines) + "\n"


def curve_table(curve: Sequence[CurvePoint]) -> str:
    """Return the table of the learning curve."""
    lines = ["| labelled frames | student alone [95 %] | ours [95 %] |", "|---|---|---|"]
    for point in curve:
        few, ours = (
            "" if mean is None else f"{format_score(mean)}{_range(found)}"
            for mean, found in (
                (point.few, point.few_interval),
                (point.ours, point.ours_interval),
            )
        )
        lines.append(f"| {point.labels} | {few} | {ours} |")
    return "\n".join(lines) + "\n"


def _range(found: Limits | None) -> str:
    return " [{:.1f}, {:.1f}]".format(*(100 * x for x in found)) if found else ""


def plot_learning_curve(curve: Sequence[CurvePoint], teacher: float, image: Path) -> None:
    """Plot mAP50-95 over the number of labelled frames to a .png; bars are 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.2))
    places = range(len(curve))
    for label, values, marker in (
        ("student alone", [(p.few, p.few_interval) for p in curve], "o"),
        ("distilled (ours)", [(p.ours, p.ours_interval) for p in curve], "s"),
    ):
        known = [
            (place, 100 * mean, 100 * (found[1] - mean) if found else 0.0)
            for place, (mean, found) in zip(places, values, strict=True)
            if mean is not None
        ]
        if known:
            x, y, half = zip(*known, strict=True)
            axis.errorbar(x, y, yerr=half, marker=marker, capsize=3, label=label)
    axis.axhline(100 * teacher, color="grey", linestyle="--", label="teacher")
    axis.set_xticks(list(places), [str(point.labels) for point in curve])
    axis.set_xlabel("labelled frames")
    axis.set_ylabel("mAP50-95 [%]")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    with atomic_file(image, ".png") as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def write_page(
    output: Path, data: DataSet, imgsz: int, teacher: dict, content: dict, rows: Sequence[dict]
) -> None:
    """Write learning-curve.png and report.html, whose models and images are of one subset.

    Args:
        output: folder of the experiment.
        data: whose validation split was measured.
        imgsz: the student's square input in pixels.
        teacher: its figures.
        content: that of metrics.json.
        rows: of all runs.
    """
    labels = content["labels"]
    own = compared(rows, labels)
    shown = [FEW, content["primary"]["named"]["other"], OURS, ALL]
    subset = min(row["subset"] for row in own)
    folders = {
        row["arm"]: run_folder(output, row["arm"], row["labels"], subset)
        for row in own
        if row["arm"] in shown and row["subset"] == subset
    }
    models = {"teacher": teacher}
    for arm, folder in folders.items():
        student = read_metrics(folder / "metrics.json")["student"]
        scores = scores_over(student, counted_classes(teacher))
        models[f"{arm}, subset {subset}"] = {**student, **scores}
    sides = None
    if FEW in folders and OURS in folders:
        resolved = data.write_resolved(output / "judged.yaml")
        first, second = (folders[arm] / "best.pt" for arm in (FEW, OURS))
        sides = compare_frames(first, second, resolved, imgsz)
    table = (output / "compare.md").read_text(encoding="utf-8")
    table = table[: table.index("| labelled frames")]  # the plot shows it
    curves = {"Learning curve": output / CURVE}
    plot_learning_curve(learning_curve(rows), teacher["map50_95"], output / CURVE)
    title = "Distillation with few labels compared"
    write_report(output / "report.html", title, models, curves, sides, table)


def run_folder(output: Path, arm: str, labels: int, subset: int) -> Path:
    """Return the folder of a run of an experiment."""
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in arm)
    return output / "runs" / f"{name}-{labels}labels-seed{subset}"
