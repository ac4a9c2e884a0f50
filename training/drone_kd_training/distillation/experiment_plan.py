# SPDX-License-Identifier: AGPL-3.0-or-later
"""Plan of an experiment: what was to run, stored before the first run, and what ran instead.

Runs that are added or left out after the scores are known are a selection. A plan makes them
visible; it does not prevent them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from drone_kd.text import one_line

_SHOWN = 12
# Arm of `few_labels_arms` whose runs have all labels, whichever number is compared.
_ALL_LABELS = "all"


@dataclass(frozen=True)
class Plan:
    """What an experiment is to run.

    Attributes:
        arms: their names.
        seeds: of the runs; few labels: of the label subsets, too.
        labels: few labels: numbers of labelled frames; the first one above 0 is compared.
        length: of a run, e.g. "1000 steps".
    """

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    labels: tuple[int, ...] = ()
    length: str = ""

    @property
    def compared_labels(self) -> int:
        """Labelled frames of the arms that are compared; 0: all frames have labels."""
        return next((number for number in self.labels if number), 0)


def read_plan(content: Any) -> Plan | None:
    """Return a plan from the JSON of its fields; None if it is something else."""
    kinds = {"arms": str, "seeds": int, "labels": int}
    if not isinstance(content, dict) or set(content) != {f.name for f in fields(Plan)}:
        return None
    lists = {key: content[key] for key in kinds}
    if not isinstance(content["length"], str) or not all(
        isinstance(values, list) and all(type(value) is kinds[key] for value in values)
        for key, values in lists.items()
    ):
        return None
    return Plan(**{key: tuple(values) for key, values in lists.items()}, length=content["length"])


def length_text(epochs: int, steps: int) -> str:
    """Return the length of a run as text; ``steps`` count before ``epochs``."""
    return f"{steps} steps" if steps else f"{epochs} epochs"


def deviations(
    planned: Plan,
    now: Plan,
    rows: Sequence[dict],
    arms: Iterable[str],
    experiment: Sequence[dict] = (),
) -> list[str]:
    """Return in what the runs of an experiment are not the planned ones, one short text each.

    Args:
        planned: stored before the first run.
        now: plan of this call.
        rows: of the finished runs that are compared.
        arms: of the primary comparison, which a seed must have with scores; none: any will do.
        experiment: few labels: rows of all finished runs, with their ``labels``.
    """
    scored = [row for row in rows if row["map50_95"] is not None]
    experiment = [row for row in experiment if row["map50_95"] is not None]
    seeds = {row["seed"] for row in scored}
    for arm in arms:
        seeds &= {row["seed"] for row in scored if row["arm"] == arm}
    planned_seeds = [seed for seed in planned.seeds if seed in seeds]  # others are missing below
    labels = [*now.labels, *(row["labels"] for row in experiment if row["arm"] != _ALL_LABELS)]
    without_rows = _without(planned.labels, {row["labels"] for row in experiment})
    found = []
    if seeds != set(planned.seeds):
        found.append(f"seeds planned: {len(planned.seeds)}, ran: {len(seeds)}")
    pairs = (
        ("seeds missing", planned.seeds, seeds),
        ("seeds added later", seeds, planned.seeds),
        ("arms missing", planned.arms, {row["arm"] for row in rows}),
        ("arms added later", dict.fromkeys(row["arm"] for row in rows), planned.arms),
        ("runs missing", _missing(planned, planned_seeds, rows, experiment), ()),
        ("labels missing", without_rows if experiment else (), ()),
        ("labels added later", dict.fromkeys(labels), planned.labels),
    )
    found += [f"{name}: {_listed(left)}" for name, a, b in pairs if (left := _without(a, b))]
    if now.compared_labels != planned.compared_labels:
        found.append(f"{now.compared_labels} labels in place of {planned.compared_labels}")
    if now.length != planned.length:
        found.append(f"{one_line(now.length)} in place of {one_line(planned.length)}")
    return found


def _missing(
    planned: Plan, seeds: Sequence[int], rows: Sequence[dict], experiment: Sequence[dict]
) -> list[str]:
    """Return the planned runs of arms, and of numbers of labels, that have only some seeds."""
    runs = {(row["arm"], row["seed"]) for row in rows}
    arms = [arm for arm in planned.arms if arm in {arm for arm, _ in runs}]
    found = [f"{arm} seed {seed}" for arm in arms for seed in seeds if (arm, seed) not in runs]
    for number in planned.labels if len(planned.labels) > 1 else ():
        at = {(row["arm"], row["seed"]) for row in experiment if row["labels"] == number}
        if number == planned.compared_labels or not at:
            continue
        needed = min(number, 1) + 1  # arms of the learning curve; without labels ours alone
        found += [
            f"{number} labels seed {seed}"
            for seed in seeds
            if sum(seed == other for _, other in at) < needed
        ]
    return found


def unscored(rows: Iterable[dict]) -> list[str]:
    """Return the runs without a score, which count nowhere: arm and seed of each."""
    return [f"{row['arm']} seed {row['seed']}" for row in rows if row["map50_95"] is None]


def _without(values: Iterable, others: Iterable) -> list:
    known = {*others}
    found = [value for value in values if value not in known]
    return sorted(found) if all(isinstance(value, int) for value in found) else found


def _listed(values: Sequence) -> str:
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return one_line(", ".join(map(str, values[:_SHOWN])), 200) + more
