# SPDX-License-Identifier: AGPL-3.0-or-later
"""Figures and curves of a finished training run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from ultralytics.utils import LOGGER

from drone_kd.parsing import ParseError, read_json, read_limited
from drone_kd.progress import duration
from drone_kd.text import one_line
from drone_kd_training.distillation.config import Config
from drone_kd_training.tables import format_score

# Of a results.csv; a run with every term has 12.
_MAX_CURVES = 100


def mean_of_sources(sources: dict[str, dict]) -> dict:
    """Return what `evaluate` found on several sources as one: mean scores, sums of counts."""
    found: dict[str, object] = {}
    for key in next(iter(sources.values())):
        values = [figures[key] for figures in sources.values()]
        known = [v for v in values if v is not None]
        if key in ("images", "images_ignored", "boxes"):
            found[key] = sum(values)
        elif key == "per_class":
            found[key] = {
                f"{name} {label}": scores
                for name, figures in sources.items()
                for label, scores in figures[key].items()
            }
        elif isinstance(values[0], list):
            found[key] = []
        else:
            found[key] = round(sum(known) / len(known), 5) if known else None
    return found


def by_model(metrics: dict) -> dict[str, dict]:
    """Return the figures of the models of a run by name; ``metrics``: of the run."""
    student = "distilled" if metrics.get("baseline") else "student"
    names = {"baseline": "student alone", "student": student, "teacher": "teacher"}
    return {name: metrics[who] for who, name in names.items() if metrics.get(who)}


def effect(metrics: dict) -> str:
    """Return in one line what the teacher brought; "" without a baseline and a teacher."""
    found = (metrics.get(who) for who in ("baseline", "student", "teacher"))
    scores = [figures.get("map50_95") for figures in found if figures]
    if len(scores) < 3 or None in scores:
        return ""
    alone, distilled, teacher = scores
    gain, gap = distilled - alone, teacher - alone
    share = f" ({100 * gain / gap:.0f} %, one seed)" if gap > 0 else ""
    return (
        f"{100 * gain:+.1f} points of mAP50-95, of a gap of {format_score(gap)} to the teacher"
        f"{share}"
    )


def warn_if_teacher_is_weaker(metrics: dict) -> None:
    """Warn if the teacher scores below its student; ``metrics`` is that of the run."""
    student, teacher = ((metrics[who] or {}).get("map50_95") for who in ("student", "teacher"))
    if student is not None and teacher is not None and teacher < student:
        LOGGER.warning(
            f"The teacher is weaker than its student: mAP50-95 {format_score(teacher)} against "
            f"{format_score(student)}; take a better teacher, or train it on this data first"
        )


def read_metrics(path: Path) -> dict:
    """Return the figures of a finished run; ValueError, also as ParseError, if they are none."""
    metrics = read_json(path)
    if (
        not isinstance(metrics, dict)
        or not isinstance(metrics.get("student"), dict)
        or not all(is_score(metrics["student"].get(score, "")) for score in ("map50_95", "map50"))
        or type(metrics.get("seconds")) not in (int, float)
    ):
        raise ValueError(
            f"{one_line(path)}: expected the figures of a student, got others; delete it"
        )
    return metrics


def is_score(value: object) -> bool:
    """Return whether a value of a file is a score in [0, 1], or None for no ground truth."""
    return value is None or (type(value) in (int, float) and 0 <= value <= 1)  # type: ignore[operator]


def title(config: Config) -> str:
    """Return one line that says what was trained; files without their folders."""
    student = Path(config.student).name
    if config.teachers:
        return f"{student} taught by the plan {Path(config.teachers).name}"
    data = Path(config.data).name
    if not config.distils:
        return f"{student} trained on {data} without a teacher"
    return f"{student} taught by {Path(config.teacher).name} on {data}"


def facts(config: Config, metrics: dict) -> dict[str, str]:
    """Return what a reader of the report of a run asks first; ``metrics``: of the run."""
    student, terms = metrics["student"], ", ".join(config.terms) if config.distils else "none"
    brought = effect(metrics)
    epochs, steps = config.epochs_and_steps
    length = f"{epochs * steps} steps" if steps else f"{epochs} epochs"
    return {
        **({"Distillation": brought} if brought else {}),
        **learned_from(metrics.get("learned_from")),
        "Student": f"{student['parameters'] / 1e6:.2f} million parameters, "
        f"{student['gflops']:.1f} GFLOPs at {config.imgsz} x {config.imgsz} pixels",
        "Classes": one_line(", ".join(student["per_class"]), 300),
        "Training": f"{length}, seed {config.seed}, {duration(metrics['seconds'])}; "
        f"distillation terms: {terms}",
        "Validation": f"{student['images']} images with {student['boxes']} labelled objects"
        if student["images"]
        else "none: there were no labels",
    }


def learned_from(expectation: dict | None) -> dict[str, str]:
    """Return what labels taught and what the teacher added, as facts of a report.

    ``expectation``: of `pseudo_labels.Expectation.as_dict`, or None without unlabelled frames.
    """
    if not expectation:
        return {}
    classes, frames = expectation["classes"], expectation["frames"]

    def listed(describe: Callable[[dict], str]) -> str:
        return one_line(", ".join(f"{describe(c)} {name}" for name, c in classes.items()), 300)

    sure = [
        f"{name} {100 * c['precision']:.0f} % right, {100 * c['recall']:.0f} % found"
        for name, c in classes.items()
        if c["precision"] is not None and c["recall"] is not None
    ]
    return {
        "Learned from labels": f"{listed(lambda c: str(c['labels']))} "
        f"(frames: {frames['labelled']['all']})",
        "Learned from the teacher": f"about {listed(lambda c: str(c['pseudo_labels']))} "
        f"(unlabelled frames: {frames['unlabelled']['all']})",
        **(
            {"Pseudo-labels, on the labelled frames": one_line("; ".join(sure), 300)}
            if sure
            else {}
        ),
    }


def plot_curves(csv: Path, image: Path) -> None:
    """Plot every loss and the validation mAP of a results.csv over the epochs.

    Raises ValueError if it is no such file.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import polars

    try:
        table = polars.read_csv(read_limited(csv))
        names = [c for c in table.columns if c.startswith("train/")]
        names += [c for c in table.columns if c.startswith("metrics/mAP") and table[c].sum() > 0]
        if not 0 < len(names) <= _MAX_CURVES or not all(
            table[c].dtype.is_numeric() for c in names
        ):
            raise ValueError(f"expected 1 to {_MAX_CURVES} columns of numbers, got others")
        epochs = table["epoch"]
    except ParseError:
        raise
    except (polars.exceptions.PolarsError, TypeError, ValueError) as error:
        raise ValueError(
            f"{one_line(csv)}: expected the losses of a run: {one_line(error)}"
        ) from None
    columns = 4
    rows = math.ceil(len(names) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 2.6 * rows), squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        axis.plot(epochs, table[name], marker="o", markersize=3)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("epoch", fontsize=8)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(image, dpi=90)
    plt.close(figure)
