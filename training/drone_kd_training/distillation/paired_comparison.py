# SPDX-License-Identifier: AGPL-3.0-or-later
"""Paired comparisons of arms: one primary, named before the runs; the others corrected by Holm.

A row is a run: ``arm``, ``map50_95`` in [0, 1] or None, and its unit, which is the label subset or
the seed. Runs of one arm on one unit are not independent: they are averaged and count once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from drone_kd.files import write_text
from drone_kd.parsing import read_json
from drone_kd.text import one_line
from drone_kd_training.distillation.claims import claim
from drone_kd_training.distillation.distill import METRICS
from drone_kd_training.distillation.experiment_plan import Plan, read_plan

SUBSET, SEED = "subset", "seed"
Limits = tuple[float, float]


@dataclass(frozen=True)
class Primary:
    """The primary comparison of an experiment: mAP50-95 of ``arm`` minus that of ``other``.

    Attributes:
        arm: ours; None where it is one of several variants and none was named.
        runs_before: finished runs when it was named. Above 0, it may have been chosen by them.
        select: share of the training frames on which all runs are measured, to choose settings;
            0: the validation split.
        plan: of the experiment; None: it has none, as those of earlier versions.
    """

    arm: str | None
    other: str
    runs_before: int = 0
    select: float = 0.0
    plan: Plan | None = None

    @property
    def refusal(self) -> str:
        """Why it does not count as primary; "" if it does."""
        if self.arm is None:
            return "several variants of ours, none named before the runs: choose with --select"
        if self.runs_before:
            return f"named after {self.runs_before} runs: confirm it on data not yet measured"
        return ""


@dataclass(frozen=True)
class Difference:
    """mAP50-95 of an arm minus that of another, over the units that both have.

    Attributes:
        role: what the other arm is; "" where its name says it.
        units: number of pairs.
        mean: in [0, 1].
        interval: 95 %, by Student's t over the units; None below two.
        p: of the two-sided paired t-test; of secondary comparisons corrected, see `secondary`.
        candidates: arms of which the other is the best on this split; 1: it was not chosen.
    """

    arm: str
    other: str
    role: str
    units: int
    mean: float
    interval: Limits | None
    p: float | None
    candidates: int = 1


def name_primary(
    output: Path, arms: Sequence[str], other: str, select: float, plan: Plan
) -> Primary:
    """Return the primary comparison of an experiment, named and written before its first run.

    It stays as the first call named it, with its plan, also where no run was started; in a folder
    of an earlier version, which named none, it is named after the runs.

    Args:
        output: folder of the experiment, whose runs are below ``runs``.
        arms: ours, or variants of it: a single one is compared, of several none.
        other: the arm that it is compared with.
        select: see `Primary`.
        plan: of this call; it is stored with the name, unless there are runs.

    Raises:
        ValueError: the file of an earlier call holds something else, or another ``select``.
    """
    path = output / "primary.json"
    with claim(output / "locks" / "primary", wait=True):
        if not path.is_file():
            finished = len(list((output / "runs").glob(f"*/{METRICS}")))
            arm = arms[0] if len(arms) == 1 else None
            named = Primary(arm, other, finished, select, None if finished else plan)
            write_text(path, json.dumps(asdict(named), indent=1))
    content = read_json(path)
    kinds: dict[str, Any] = {"arm": (str, type(None)), "other": str, "runs_before": int}
    kinds["select"] = (int, float)
    if (
        not isinstance(content, dict)
        or set(content) | {"plan"} != {*kinds, "plan"}
        or not all(isinstance(content.get(key), kind) for key, kind in kinds.items())
        or (content.get("plan") is not None and read_plan(content["plan"]) is None)
    ):
        raise ValueError(f"{one_line(path)}: expected a primary comparison, got other content")
    if content["select"] != select:
        raise ValueError(
            f"{one_line(output)} has an experiment with another select: choose another --output"
        )
    return Primary(**{**content, "plan": read_plan(content.get("plan"))})


def distinct(settings: Mapping[str, object], first: Sequence[str]) -> list[str]:
    """Return the arms (name -> settings) without those whose runs are those of another one.

    Of equal arms one of ``first`` stays, else the first one; the others are named on the screen.
    """
    found: dict[str, object] = {}
    for arm in sorted(settings, key=lambda name: name not in first):
        same = next((name for name, other in found.items() if other == settings[arm]), None)
        if same is None:
            found[arm] = settings[arm]
        else:
            print(f"{one_line(arm, 60)} is the same run as {one_line(same, 60)}: left out")
    return [arm for arm in settings if arm in found]


def score(row: dict) -> float | None:
    """Return the mAP50-95 of a run, None without any ground truth."""
    found: float | None = row["map50_95"]
    return found


def mean_by_unit(
    rows: Sequence[dict], arm: str, unit: str, value: Callable[[dict], float | None] = score
) -> dict[int, float]:
    """Return the mean of an arm by unit, of the mAP50-95 or another value of a run.

    Runs without the value do not count: no value is not 0.
    """
    found: dict[int, list[float]] = {}
    for row in rows:
        if row["arm"] == arm and (known := value(row)) is not None:
            found.setdefault(row[unit], []).append(known)
    return {key: float(np.mean(values)) for key, values in found.items()}


def difference(
    rows: Sequence[dict], arm: str, other: str, unit: str, role: str = "", candidates: int = 1
) -> Difference | None:
    """Return the difference of two arms; None without a unit that both have."""
    own, others = mean_by_unit(rows, arm, unit), mean_by_unit(rows, other, unit)
    found = [own[key] - others[key] for key in own if key in others]
    if not found:
        return None
    mean, limits_ = float(np.mean(found)), interval(found)
    return Difference(arm, other, role, len(found), mean, limits_, p_value(found), candidates)


def best(rows: Sequence[dict], arms: Sequence[str], unit: str) -> str | None:
    """Return the arm with the best mean, among those with the most units; None without rows."""
    found = {arm: mean_by_unit(rows, arm, unit) for arm in arms}
    most = max(map(len, found.values()), default=0)
    means = {a: float(np.mean([*s.values()])) for a, s in found.items() if most and len(s) == most}
    return max(means, key=lambda arm: means[arm], default=None)


def best_difference(
    rows: Sequence[dict], arm: str, others: Sequence[str], unit: str, role: str
) -> Difference | None:
    """Return an arm minus the best of others on these rows, which favours that one."""
    units = mean_by_unit(rows, arm, unit)
    paired = [row for row in rows if row[unit] in units]
    measured = [name for name in dict.fromkeys(others) if mean_by_unit(paired, name, unit)]
    other = best(paired, measured, unit)
    return difference(rows, arm, other, unit, role, len(measured)) if other else None


def interval(differences: Sequence[float]) -> Limits | None:
    """Return the 95 % interval of a mean of paired differences by Student's t, None below two."""
    n = len(differences)
    if n < 2:
        return None
    error = float(np.std(differences, ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * error
    mean = float(np.mean(differences))
    return mean - half, mean + half


def p_value(differences: Sequence[float]) -> float | None:
    """Return the p value of a mean of paired differences, two-sided t-test; None below two."""
    n = len(differences)
    if n < 2:
        return None
    mean = abs(float(np.mean(differences)))
    error = float(np.std(differences, ddof=1)) / math.sqrt(n)
    if not error:
        return 0.0 if mean else 1.0
    return float(2 * stats.t.sf(mean / error, n - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number, in the given order (Holm 1979).

    The chance that any true null hypothesis falls below a level is at most that level, whatever
    their dependence.
    """
    order = np.argsort(p_values, kind="stable")
    raised = np.asarray(p_values, float)[order] * np.arange(len(order), 0, -1)
    found = np.empty(len(order))
    found[order] = np.minimum(1.0, np.maximum.accumulate(raised))
    return [float(p) for p in found]


def secondary(found: Iterable[Difference | None], primary: Primary) -> list[Difference]:
    """Return the comparisons other than the primary one, each once, p corrected by Holm."""
    kept: dict[tuple[str, str], Difference] = {}
    for item in found:
        pair = item and (item.arm, item.other)
        if item and pair and (primary.refusal or pair != (primary.arm, primary.other)):
            kept.setdefault(pair, item)
    tested = [item.p for item in kept.values() if item.p is not None]
    values = iter(holm(tested))
    return [d if d.p is None else replace(d, p=next(values)) for d in kept.values()]
