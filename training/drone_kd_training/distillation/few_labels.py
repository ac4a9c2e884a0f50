# SPDX-License-Identifier: AGPL-3.0-or-later
"""Experiment with few labels: a student with a teacher and unlabelled frames, and its baselines.

    drone-kd compare --protocol few-labels --data data.yaml --teacher teacher.pt \
      --student yolo11n.pt --steps 1000 --labels 5 --seeds 0 1 2 3 4 --output runs/few

The data are fully labelled. Per subset (seed) a few frames of ``train`` keep their labels; the
labels of the others are not read. Every arm takes the same number of steps. Finished runs are
kept: the same command continues, and a second one beside it takes other runs.

    OUTPUT/experiment.json       settings that cannot change
    OUTPUT/primary.json          primary comparison and plan, stored before the first run
    OUTPUT/provenance.json       of all processes, from their start on
    OUTPUT/subsets/LABELS-SEED/  data.yaml, unlabelled.txt, hard-SCORE/
    OUTPUT/runs/NAME/            a run, as `distill` writes it; NAME.json: its row
    OUTPUT/compare.csv, compare.md, metrics.json, learning-curve.png, report.html
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import polars

from drone_kd.files import write_text
from drone_kd.parsing import parse_json, read_json, read_limited
from drone_kd.text import one_line
from drone_kd_training.data.dataset import DataSet, image_paths, load_data, write_list
from drone_kd_training.distillation.claims import claim
from drone_kd_training.distillation.compare import (
    evaluate_teacher,
    hold_out,
    image_sizes,
    scores_over,
)
from drone_kd_training.distillation.comparison_text import counted_classes
from drone_kd_training.distillation.config import AUTO, Config, read_config
from drone_kd_training.distillation.distill import METRICS, distill
from drone_kd_training.distillation.experiment_plan import Plan, length_text
from drone_kd_training.distillation.experiment_provenance import record_process
from drone_kd_training.distillation.few_labels_arms import (
    ALL,
    FEW,
    HARD,
    OURS,
    Arm,
    default_arms,
    parse_arm,
)
from drone_kd_training.distillation.few_labels_figures import is_ours
from drone_kd_training.distillation.few_labels_report import (
    run_folder,
    write_page,
    write_tables,
)
from drone_kd_training.distillation.hard_labels import write_hard_labels
from drone_kd_training.distillation.label_subsets import Subset, frames, write_subset
from drone_kd_training.distillation.paired_comparison import Primary, distinct, name_primary
from drone_kd_training.distillation.run_report import read_metrics
from drone_kd_training.evaluation.evaluate import evaluate

DEFAULT_LABELS = 5


@dataclass(frozen=True)
class Run:
    """One training: an arm with a number of labelled frames and a subset of them (a seed)."""

    arm: Arm
    labels: int
    subset: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return run_folder(Path(), self.arm.name, self.labels, self.subset).name


def compare_few_labels(
    config: Config,
    output: Path,
    subsets: Sequence[int],
    arms: Sequence[str] = (),
    labels: Sequence[int | None] = (DEFAULT_LABELS,),
    select: float = 0.0,
) -> dict[str, Any]:
    """Run the missing runs; write the tables after each, and the report at the end.

    The primary comparison and the plan are stored before the first run, in ``primary.json``: ours
    minus the first of ``arms`` with hard pseudo-labels, without one minus the student alone.

    Args:
        config: settings of the arm ``ours``, with ``steps``; ``seed`` is ignored, and no run
            validates while it trains.
        output: folder of the experiment.
        subsets: numbers of the label subsets, which are the seeds of the runs, too.
        arms: names of the arms; default: `few_labels_arms.default_arms`.
        labels: labelled frames; None: all. All arms are trained with the first number above 0,
            ``few`` and ``ours`` with every one, ``ours`` alone with 0.
        select: judge on this share of the training frames (`hold_out`) instead of the validation
            split, to choose settings.

    Returns:
        The content of ``metrics.json``.

    Raises:
        ValueError: settings that do not go together, an unknown arm, a folder with an experiment
            of other settings; also as DataError and UnusableModelError.
    """
    _check(config)
    config = replace(config, val=False, same_flights=select > 0)
    parsed = _parse(arms or default_arms(config), config)  # before any run
    output = output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    with claim(output / "locks" / "prepare", wait=True):
        _check_settings(config, select, output / "experiment.json")
        data = hold_out(Path(config.data), select, output) if select else Path(config.data)
        teacher = evaluate_teacher(config, data, output)
        experiment = Experiment(config, load_data(data), output, teacher)
        runs = experiment.list_runs(parsed, list(subsets), labels)
        primary = _name_primary(output, parsed, select, experiment.plan)
    record_process(output, subsets, experiment.classes, image_sizes(config))
    while experiment.advance(runs, primary):
        pass
    found = experiment.write_tables(primary)
    if left := [run.name for run in runs if not experiment.is_finished(run)]:
        print(f"{len(left)} runs are left to other processes: {', '.join(left[:3])}")
    else:
        write_page(output, experiment.dataset, config.imgsz, teacher, found, experiment.rows())
    return found


def _check(config: Config) -> None:
    """Refuse settings that do not go with the protocol; ValueError."""
    conflicts = {
        "a teacher": config.distils,
        "--steps: arms of one number of steps": config.steps > 0,
        "no --unlabelled: the frames of train without labels": not config.unlabelled,
        "no --fraction: --labels": config.fraction == 1,
    }
    for expected, holds in conflicts.items():
        if not holds:
            raise ValueError(f"the few-labels protocol expects {expected}")


def _parse(names: Sequence[str], config: Config) -> list[Arm]:
    """Return the arms of some names, without arms that are the same run."""
    arms = {name: parse_arm(name, config) for name in names}
    settings = {name: replace(arm, name="") for name, arm in arms.items()}
    return [arms[name] for name in distinct(settings, (FEW, OURS))]


def _name_primary(output: Path, arms: Sequence[Arm], select: float, plan: Plan) -> Primary:
    """Return the primary comparison of the experiment, which is named here if it is new."""
    names = [arm.name for arm in arms]
    ours = [OURS] if OURS in names else [name for name in names if is_ours(name)]
    hard = next((name for name in names if name.split(":")[0] == HARD), FEW)
    return name_primary(output, ours or [OURS], hard, select, plan)


def _check_settings(config: Config, select: float, path: Path) -> None:
    """Write the settings of an experiment, or compare them with those that are there."""
    content = {**asdict(config), "select": select, "data": str(Path(config.data).resolve())}
    for free in ("seed", "device", "same_flights"):
        del content[free]
    content = parse_json(json.dumps(content, default=str), path)
    if not path.is_file():
        write_text(path, json.dumps(content, indent=1))
        return
    before = read_json(path)
    # An earlier version may have written fewer settings: it had their defaults.
    defaults = {field.name: field.default for field in fields(Config)}
    defaults = parse_json(json.dumps(defaults, default=str), path)
    known = {**defaults, **(before if isinstance(before, dict) else {})}
    if other := sorted(key for key in content if content[key] != known.get(key)):
        raise ValueError(
            f"{one_line(path.parent)} has an experiment with another "
            f"{one_line(', '.join(other), 200)}: choose another --output"
        )


class Experiment:
    """Runs of one experiment, shared with other processes.

    Args:
        config: settings of ours.
        dataset: fully labelled.
        output: folder of the experiment, absolute.
        teacher: its figures.
    """

    def __init__(self, config: Config, dataset: DataSet, output: Path, teacher: dict) -> None:
        self.config, self.dataset, self.output, self.teacher = config, dataset, output, teacher
        self.classes = counted_classes(teacher)
        self.total = len(frames(image_paths(dataset.train)))
        self.plan = Plan((), ())  # see `list_runs`

    def list_runs(
        self, arms: Sequence[Arm], subsets: Sequence[int], labels: Sequence[int | None]
    ) -> list[Run]:
        """Return all runs of the experiment, subset by subset; arguments as `compare_few_labels`.

        They are the plan of this call.

        Raises:
            ValueError: no number of labels above 0, or more labels than frames.
        """
        numbers = [self.total if n is None else n for n in labels]
        compared = next((n for n in numbers if n), 0)
        if any(arm.timed for arm in arms):  # it follows from these
            arms = [*arms, *(parse_arm(name, self.config) for name in (FEW, OURS))]
        if not compared or min(numbers) < 0 or max(numbers) > self.total:
            raise ValueError(
                f"expected 0 to {self.total} labelled frames, some of them above 0, got "
                f"{', '.join(map(str, numbers))}"
            )
        if compared == self.total and any(arm.name == FEW for arm in arms):
            arms = [arm for arm in arms if arm.name != ALL]  # the same run
        found: dict[tuple[str, int, int], Run] = {}
        for subset in subsets:
            for run in self._of_subset(arms, subset, numbers, compared):
                found.setdefault((run.arm.name, run.labels, run.subset), run)
        length = length_text(self.config.epochs, self.config.steps)
        names = tuple(dict.fromkeys(run.arm.name for run in found.values()))
        self.plan = Plan(names, tuple(dict.fromkeys(subsets)), tuple(numbers), length)
        return list(found.values())

    def _of_subset(
        self, arms: Sequence[Arm], subset: int, numbers: list[int], compared: int
    ) -> Iterator[Run]:
        for arm in arms:
            yield Run(arm, self.total if arm.images == ALL else compared, subset)
        for number in numbers if len(numbers) > 1 else ():
            alone = ALL if number == self.total != compared else FEW
            for name in (alone, OURS) if number else (OURS,):
                yield Run(parse_arm(name, self.config), number, subset)

    def advance(self, runs: Sequence[Run], primary: Primary) -> bool:
        """Train what is missing and not claimed by another process; return whether any was."""
        trained = False
        for number, run in enumerate(runs, start=1):
            if self.is_finished(run):
                continue
            with claim(self.output / "locks" / run.name) as claimed:
                if not claimed or self.is_finished(run) or (steps := self._steps(run)) is None:
                    continue
                print(f"[{number}/{len(runs)}] {run.name}", flush=True)
                self._train(run, steps)
                trained = True
            self.write_tables(primary)
        return trained

    def is_finished(self, run: Run) -> bool:
        """Return whether a run has its row."""
        return self._row(run) is not None

    def rows(self) -> list[dict]:
        """Return the rows of all finished runs, also of arms that are not planned now."""
        records = ((file, _read_record(file)) for file in (self.output / "runs").glob("*.json"))
        rows = (self._complete(record["row"], file) for file, record in records if record["row"])
        return sorted(rows, key=lambda row: (row["labels"], row["subset"], row["arm"]))

    def write_tables(self, primary: Primary) -> dict[str, Any]:
        """Write the tables of all finished runs; return the content of ``metrics.json``.

        Without a finished run there are no tables, and {} is returned.
        """
        with claim(self.output / "locks" / "tables", wait=True):
            if not (rows := self.rows()):
                return {}
            return write_tables(self.output, self.teacher, primary, rows, self.plan)

    def _complete(self, row: dict, record: Path) -> dict:
        """Return the row of a run with all columns, as of an earlier version, over our classes."""
        if "classes" in row:
            return row
        columns = self._columns(row["subset"])
        if not self.teacher["classes_not_in_model"]:  # all classes counted, as now
            return {**row, **columns}
        try:
            student = read_metrics(record.with_suffix("") / METRICS)["student"]
            return {**row, **scores_over(student, self.classes), **columns}
        except ValueError as error:
            raise ValueError(
                f"{one_line(record)}: measured over classes that the teacher lacks, by an earlier "
                f"version ({one_line(error, 200)}); delete it and its folder"
            ) from None

    def _columns(self, subset: int) -> dict[str, Any]:
        columns = {"classes": ";".join(self.classes), "imgsz": self.config.imgsz}
        return {"seed": subset, **columns}

    def _row(self, run: Run) -> dict | None:
        record = _read_record(self._record(run))
        return record["row"] if (self._folder(run) / METRICS).is_file() else None

    def _folder(self, run: Run) -> Path:
        return self.output / "runs" / run.name

    def _record(self, run: Run) -> Path:
        return self.output / "runs" / f"{run.name}.json"

    def _steps(self, run: Run) -> int | None:
        """Return the steps of a run; None: they depend on runs that are not finished."""
        if not run.arm.timed:
            return run.arm.config.steps
        arms = (parse_arm(name, self.config) for name in (FEW, OURS))
        rows = [self._row(replace(run, arm=arm)) for arm in arms]
        if None in rows:
            return None
        few, ours = (row["seconds"] / row["steps"] for row in rows if row)
        return max(1, round(self.config.steps * ours / few))

    def _train(self, run: Run, steps: int) -> None:
        """Train or continue a run, and write its row."""
        with claim(self.output / "locks" / "prepare", wait=True):
            config = self._settings(run, steps)
        folder, record = self._folder(run), self._record(run)
        started = (folder / "config.yaml").is_file()
        # Training time counts from the start of each process.
        sessions = [*(_read_record(record)["sessions"] if started else []), _epochs(folder)]
        write_text(record, json.dumps({"sessions": sessions, "row": None}))
        metrics = distill(config, folder, resume=started, measure_teacher=False)
        student = metrics["student"]
        if not config.data:  # without labels it was not evaluated
            judged = self.dataset.write_resolved(self.output / "judged.yaml")
            student |= evaluate(folder / "best.pt", judged, imgsz=config.imgsz)
        row = {
            "arm": run.arm.name,
            "subset": run.subset,
            "labels": run.labels,
            "steps": math.prod(read_config(folder).epochs_and_steps),
            **scores_over(student, self.classes),
            "seconds": training_seconds(folder / "results.csv", sessions),
            "parameters": student["parameters"],
            **self._columns(run.subset),
        }
        write_text(record, json.dumps({"sessions": sessions, "row": row}))

    def _settings(self, run: Run, steps: int) -> Config:
        """Write the data of a run; return its settings."""
        config = replace(run.arm.config, seed=run.subset, steps=steps)
        if config.views and not config.view_cache:
            config = replace(config, view_cache=str(self.output / "views" / f"seed{run.subset}"))
        folder = self.output / "subsets" / f"{run.labels}-{run.subset}"
        if not run.labels:
            return self._without_labels(config, folder / "unlabelled.txt")
        files = write_subset(self.dataset, run.labels, run.subset, folder)
        if run.arm.images == HARD:
            data = self._hard_labels(run.arm, files, folder)
            return replace(config, data=str(data))
        config = replace(config, data=str(files.data))
        if run.arm.images == OURS and files.unlabelled is not None:
            return _with_unlabelled(config, files.unlabelled)
        return config

    def _hard_labels(self, arm: Arm, files: Subset, folder: Path) -> Path:
        if files.unlabelled is None:
            raise ValueError(f"arm {arm.name}: expected frames without labels, got none")
        ours = self.config
        target = folder / f"hard-{arm.threshold:g}"
        share = ours.labelled_share
        size = ours.teacher_imgsz
        return write_hard_labels(files, ours.teacher, size, arm.threshold, share, target)

    def _without_labels(self, config: Config, listed: Path) -> Config:
        write_list(listed, image_paths(self.dataset.train))
        tile = "off" if config.tile == AUTO else config.tile  # as with labels
        config = _with_unlabelled(replace(config, tile=tile), listed)
        return replace(config, data="", classes=self.dataset.names)


def _with_unlabelled(config: Config, listed: Path) -> Config:
    """Return settings with unlabelled frames: all of them, as other arms have them."""
    most = max(config.max_frames, len(image_paths(listed)))
    return replace(config, unlabelled=(str(listed),), max_frames=most)


def training_seconds(csv: Path, sessions: Sequence[int]) -> float:
    """Return how long a run trained.

    Args:
        csv: its results.csv, whose time counts from the start of each process.
        sessions: finished epochs at these starts.
    """
    times = [0.0, *polars.read_csv(read_limited(csv))["time"].to_list()]
    ends = [*sessions[1:], len(times) - 1]
    # A process that finished no epoch adds nothing.
    return float(sum(times[end] for start, end in zip(sessions, ends, strict=True) if end > start))


def _epochs(folder: Path) -> int:
    """Return the number of finished epochs of a run."""
    results = folder / "results.csv"
    return len(polars.read_csv(read_limited(results))) if results.is_file() else 0


def _read_record(path: Path) -> dict:
    """Return the sessions and the row of a run; ValueError if the file is something else."""
    if not path.is_file():
        return {"sessions": [], "row": None}
    record = read_json(path)
    if not isinstance(record, dict) or {"sessions", "row"} - set(record):
        raise ValueError(f"{one_line(path)}: expected the row of a run; delete it")
    return record
