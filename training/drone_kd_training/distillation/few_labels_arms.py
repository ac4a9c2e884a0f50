# SPDX-License-Identifier: AGPL-3.0-or-later
"""Arms of the few-labels protocol: what each trains on, and with which settings."""

from __future__ import annotations

from dataclasses import dataclass, replace

from drone_kd.text import one_line
from drone_kd_training.distillation.compare import change
from drone_kd_training.distillation.compare_command import ARMS_HELP
from drone_kd_training.distillation.compare_report import BUILTIN
from drone_kd_training.distillation.config import NO_TEACHER, Config

FEW, ALL, FEW_TIME, HARD, OURS = "few", "all", "few-time", "hard", "ours"
BUILTIN_HARD = f"{BUILTIN}-{HARD}"
# Where another arm trains on pseudo-labels.
USUAL_THRESHOLD = 0.4
# Scores from which the teacher's boxes are labels. The first one is in the primary comparison.
HARD_THRESHOLDS = (USUAL_THRESHOLD, 0.3, 0.5)
# What ours is compared without, beside each of its terms.
_WITHOUT = (
    "beta=1",
    "schedule=cosine;rebalance=0",
    "pseudo_threshold=0.6",
    "keep_labels=false",
)


@dataclass(frozen=True)
class Arm:
    """An arm of the experiment.

    Attributes:
        name: as the user gives it.
        images: what it trains on: FEW (labelled images), ALL, HARD (labelled and pseudo-labelled
            images) or OURS (labelled and unlabelled images).
        config: its settings, data and seed aside.
        threshold: score from which the teacher's boxes are labels, with HARD.
        timed: trained for the time that ours takes.
    """

    name: str
    images: str
    config: Config
    threshold: float = 0.0
    timed: bool = False


def default_arms(config: Config) -> list[str]:
    """Return all baselines, ours, and ours without each of its parts."""
    terms = [
        "terms=" + "+".join(term for term in config.terms if term != left_out)
        for left_out in config.terms
        if len(config.terms) > 1
    ]
    return [
        *(FEW, f"{FEW}:half", OURS, *(f"{HARD}:{t:g}" for t in HARD_THRESHOLDS), ALL, FEW_TIME),
        *(f"{BUILTIN}:1", f"{BUILTIN_HARD}:1"),
        *(f"{OURS};{changes}" for changes in (*terms, *_WITHOUT)),
    ]


def parse_arm(name: str, config: Config) -> Arm:
    """Return the arm of a name, see `compare_command.ARMS_HELP`; ``config``: settings of ours.

    Raises:
        ValueError: there is no such arm, or its number is out of range.
    """
    kind, _, changes = name.partition(";")
    if kind == OURS:
        return Arm(name, OURS, change(config, changes, ARMS_HELP) if changes else config)
    kind, *values = name.split(":")
    values = [str(max(1, config.steps // 2)) if v == "half" else v for v in values]
    try:
        arm = _without_teacher(name, kind, [float(v) for v in values], config)
    except (ValueError, OverflowError):
        arm = None
    if arm is None or not 0 <= arm.threshold <= 1:
        raise ValueError(f"arm {one_line(repr(name), 60)}: expected {ARMS_HELP}")
    return arm


def _without_teacher(name: str, kind: str, numbers: list[float], config: Config) -> Arm | None:
    """Return an arm without our distillation, None if there is none of this kind."""
    # Stored views are for a teacher; the student alone sees a new augmentation at every step.
    alone = replace(config, teacher=NO_TEACHER, views=0)
    match kind, numbers:
        case (("few" | "all"), []):
            return Arm(name, kind, alone)
        case "few-time", []:
            return Arm(name, FEW, alone, timed=True)
        case "few", [steps] if steps >= 1:
            return Arm(name, FEW, replace(alone, steps=int(steps)))
        case "hard", [threshold]:
            return Arm(name, HARD, alone, threshold)
        case "builtin", [weight]:
            return Arm(name, FEW, _builtin(alone, config.teacher, weight))
        case "builtin-hard", [weight, *rest] if len(rest) <= 1:
            threshold = rest[0] if rest else USUAL_THRESHOLD
            return Arm(name, HARD, _builtin(alone, config.teacher, weight), threshold)
    return None


def _builtin(alone: Config, teacher: str, weight: float) -> Config:
    builtin = {"distill_model": teacher, "dis": weight}
    return replace(alone, overrides={**alone.overrides, **builtin})
