# SPDX-License-Identifier: AGPL-3.0-or-later
"""Pseudo-labels of a run before it starts: their thresholds, how many, and how often right.

A teacher's scores on labelled frames choose a threshold per class, and give the precision and
recall of pseudo-labels. Its scores on unlabelled frames give their number.

    scores = score_teacher(teacher, match, labelled, unlabelled, imgsz)
    thresholds = choose_thresholds(scores)
    expectation = expect(scores, thresholds)
    print(expectation.table())
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from drone_kd.text import one_line
from drone_kd_training.tables import format_columns
from drone_kd_training.teachers.soft_labels import Thresholds
from drone_kd_training.teachers.teacher_scores import LOWEST_THRESHOLD, Scores, TeacherScores

# Thresholds to choose from, in hundredths: a threshold is printed as it is used.
THRESHOLDS = np.arange(round(100 * LOWEST_THRESHOLD), 81) / 100
# Thresholds without labels to check against.
DEFAULT, DEFAULT_LOW = 0.35, 0.1
# Labels of a class that choose a threshold; with fewer, the default is used.
MIN_LABELS = 10
# F1 that a threshold must gain over the default, per squared distance and times the labels: 0.1
# away must be 0.02 better with 10 labels, 0.002 with 100. Chosen on simulated scores.
SHRINKAGE = 20.0
# A class of which the teacher finds less at the lowest threshold, of at least so many labels, gets
# a warning.
MIN_RECALL, WARNED_LABELS = 0.3, 5


@dataclass(frozen=True)
class ClassExpectation:
    """What a run learns about one class from pseudo-labels.

    Attributes:
        frames, labels: labelled frames with the class, and its labels; of those that were read.
        threshold: of a pseudo-label.
        low: lower edge of the ignore region.
        chosen: whether labels chose the threshold; otherwise it is the default.
        right, predicted: true positives and boxes at the threshold on the labelled frames.
        precision, recall: estimated at the threshold, or None. The same labels chose the
            threshold, so both are slightly optimistic.
        pseudo_labels: expected number on all unlabelled frames.
        ignored: share of the teacher's boxes on unlabelled frames that are ignore regions, or None
            without a box.
    """

    name: str
    frames: int
    labels: int
    threshold: float
    low: float
    chosen: bool
    right: int
    predicted: int
    precision: float | None
    recall: float | None
    pseudo_labels: int
    ignored: float | None


@dataclass(frozen=True)
class Expectation:
    """What a run will learn from its unlabelled frames: one row per class that is taught.

    ``labelled`` and ``unlabelled`` are those of `TeacherScores`; ``warnings`` are for the user.
    """

    classes: tuple[ClassExpectation, ...]
    labelled: tuple[int, int]
    unlabelled: tuple[int, int]
    warnings: tuple[str, ...]

    def table(self) -> str:
        """Return a text table, and which frames it is from."""
        header = (
            "class",
            "frames",
            "threshold",
            "precision",
            "recall",
            "pseudo-labels",
            "ignored",
        )
        rows = [
            (
                one_line(c.name, 16),
                f"{c.frames:,}",
                f"{c.threshold:.2f}" + "*" * (not c.chosen),
                _share(c.precision, c.right, c.predicted),
                _share(c.recall, c.right, c.labels),
                f"{c.pseudo_labels:,}",
                "-" if c.ignored is None else f"{100 * c.ignored:.0f} %",
            )
            for c in self.classes
        ]
        lines = [format_columns(header, rows)]
        if not self.labelled[0]:
            lines.append("* default: no labels to check against")
        elif not all(c.chosen for c in self.classes):
            lines.append(f"* default: fewer than {MIN_LABELS} labels")
        counts = (("labelled", self.labelled), ("unlabelled", self.unlabelled))
        read = " and ".join(f"{_of(count)} {kind} frames" for kind, count in counts if count[0])
        ignored = "ignored: share of boxes in ignore regions, neither object nor background"
        return "\n".join([*lines, ignored, f"Measured on {read}"])

    def as_dict(self) -> dict:
        """Return the same for a JSON file, with the warnings; scores and shares in [0, 1]."""
        counts = {"labelled": self.labelled, "unlabelled": self.unlabelled}
        return {
            "classes": {c.name: _without_name(asdict(c)) for c in self.classes},
            "frames": {kind: {"read": read, "all": all_} for kind, (read, all_) in counts.items()},
            "warnings": list(self.warnings),
        }


def choose_thresholds(teacher: TeacherScores) -> Thresholds:
    """Choose the thresholds of pseudo-labels by class.

    The threshold has the highest F1 on the labelled frames, less a penalty for its distance from
    the default that fades with the number of labels: the highest F1 of few labels is noise. It is
    within 0.1 and 0.8.

    The ignore region begins at 0.1, whatever the labels: objects that the teacher hardly sees must
    not become background.
    """
    high = tuple(_choose(scores) for scores in teacher.scores)
    return Thresholds(high, (DEFAULT_LOW,) * len(high))  # no threshold is lower


def expect(teacher: TeacherScores, thresholds: Thresholds) -> Expectation:
    """Return what a run learns from its unlabelled frames at these thresholds."""
    read, all_ = teacher.unlabelled
    rows = []
    for name, scores, high, low in zip(
        teacher.names, teacher.scores, thresholds.high, thresholds.low, strict=True
    ):
        if scores is None:
            continue
        right, predicted = scores.counts(high)
        boxes = scores.unlabelled
        above = int((boxes >= high).sum())
        ignored = ((boxes >= low) & (boxes < high)).mean() if len(boxes) else None
        rows.append(
            ClassExpectation(
                name=name,
                frames=scores.frames,
                labels=scores.labels,
                threshold=high,
                low=low,
                chosen=scores.labels >= MIN_LABELS,
                right=right,
                predicted=predicted,
                precision=round(right / predicted, 4) if predicted else None,
                recall=round(right / scores.labels, 4) if scores.labels else None,
                pseudo_labels=round(above * all_ / read),
                ignored=None if ignored is None else round(float(ignored), 4),
            )
        )
    warnings = _warnings(teacher, rows)
    return Expectation(tuple(rows), teacher.labelled, teacher.unlabelled, tuple(warnings))


def _choose(scores: Scores | None) -> float:
    """Return the threshold of one class."""
    if scores is None or scores.labels < MIN_LABELS:
        return DEFAULT
    right, predicted = np.array([scores.counts(t) for t in THRESHOLDS.tolist()]).T
    f1 = 2 * right / (predicted + scores.labels)
    penalty = SHRINKAGE / scores.labels * (THRESHOLDS - DEFAULT) ** 2
    return float(THRESHOLDS[(f1 - penalty).argmax()])


def _warnings(teacher: TeacherScores, rows: list[ClassExpectation]) -> Iterator[str]:
    for name, scores in zip(teacher.names, teacher.scores, strict=True):
        shown = one_line(name, 40)
        if scores is None:
            yield f"{shown}: unknown to the teacher; masked on unlabelled frames"
        elif teacher.labelled[0] and not scores.labels:
            yield f"{shown}: no label in {teacher.labelled[0]} labelled frames; default threshold"
        elif scores.labels >= WARNED_LABELS:
            found, _ = scores.counts(LOWEST_THRESHOLD)
            if found < MIN_RECALL * scores.labels:
                yield (
                    "the teacher's predictions look wrong on the labelled frames: "
                    f"{shown}: finds {found} of {scores.labels}; check classes, imgsz, tile"
                )
    for row in rows:
        if not row.pseudo_labels:
            yield (
                f"{one_line(row.name, 40)}: no pseudo-label with a score ≥ {row.threshold:.2f} in "
                f"{teacher.unlabelled[0]} unlabelled frames"
            )


def _share(value: float | None, count: int, total: int) -> str:
    return "-" if value is None else f"{value:.2f} ({count}/{total})"


def _of(counts: tuple[int, int]) -> str:
    read, all_ = counts
    return f"{read:,}" if read == all_ else f"{read:,} of {all_:,}"


def _without_name(row: dict) -> dict:
    return {key: value for key, value in row.items() if key != "name"}
