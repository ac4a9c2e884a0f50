# SPDX-License-Identifier: AGPL-3.0-or-later
"""Paired experiment: distillation against the baseline and Ultralytics' own distillation.

Every arm trains the same student from the same weights on the same batches, once per seed; the
figures are differences within a seed. Finished runs are kept, so the same command continues an
interrupted experiment. Tables: `compare_report`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import polars

from drone_kd.files import write_text
from drone_kd.parsing import read_json, read_limited
from drone_kd.progress import print_line
from drone_kd.text import one_line
from drone_kd_training.data.dataset import DataError, image_paths, load_data, write_list
from drone_kd_training.data.repeated_images import repeated_note
from drone_kd_training.dataclass_options import read_value
from drone_kd_training.distillation.arm_figures import ArmFigures
from drone_kd_training.distillation.compare_report import (
    BUILTIN,
    DISTILLED,
    PLAIN,
    TIMED,
    is_ours,
    write_tables,
)
from drone_kd_training.distillation.comparison_text import counted_classes
from drone_kd_training.distillation.config import NO_TEACHER, Config, read_config
from drone_kd_training.distillation.distill import METRICS, distill
from drone_kd_training.distillation.experiment_plan import Plan, length_text
from drone_kd_training.distillation.experiment_provenance import record_process
from drone_kd_training.distillation.label_subsets import frame_path, frames
from drone_kd_training.distillation.paired_comparison import distinct, name_primary
from drone_kd_training.distillation.run_report import is_score, read_metrics
from drone_kd_training.evaluation.evaluate import evaluate, over_classes
from drone_kd_training.html_report import compare_frames, write_report
from drone_kd_training.models.checkpoints import cost, load_model
from drone_kd_training.ray_cluster import each
from drone_kd_training.retraining.stretches import frame_blocks
from drone_kd_training.tables import as_csv

# Values to tune the one weight of Ultralytics' own distillation, `dis` (default 6).
BUILTIN_WEIGHTS = (0.5, 1.0, 2.0, 6.0)
# Number of stretches of frames that `hold_out` takes, and of flights from which it takes some.
STRETCHES = 8
SCORES = ("map50_95", "map50", "ap_tiny", "ap_small", "ap_medium")


def default_arms(config: Config) -> list[str]:
    """Return the baselines, the tuned built-in, ours, and ours minus each of its terms."""
    without = [
        "terms=" + "+".join(term for term in config.terms if term != left_out)
        for left_out in config.terms
        if len(config.terms) > 1
    ]
    return [PLAIN, *(f"{BUILTIN}:{w:g}" for w in BUILTIN_WEIGHTS), DISTILLED, *without, TIMED]


def arm_config(arm: str, config: Config) -> Config:
    """Return the settings of an arm.

    An arm is ``plain`` (the baseline); ``plain:time``, whose length follows from the time of
    ``distilled``; ``distilled``; ``builtin:W``, Ultralytics' distill_model with dis=W; or changes
    to ``distilled`` as ``key=value`` joined by ``;`` (several terms joined by ``+``).

    Raises:
        ValueError: an arm that is none of these.
    """
    name, _, weight = arm.partition(":")
    if arm in (PLAIN, TIMED):
        return replace(config, teacher=NO_TEACHER)
    if arm == DISTILLED:
        return config
    if name == BUILTIN:
        builtin = {"distill_model": config.teacher, "dis": float(weight)}
        return replace(config, teacher=NO_TEACHER, overrides={**config.overrides, **builtin})
    described = f"{PLAIN}, {TIMED}, {DISTILLED}, {BUILTIN}:WEIGHT"
    return change(config, arm, described)


def change(config: Config, changes: str, expected: str) -> Config:
    """Return settings with changes, ``key=value`` joined by ``;`` (terms joined by ``+``).

    Raises:
        ValueError: a key is no setting; ``expected`` says what else an arm may be.
    """
    known = {f.name for f in fields(Config)} - {"data", "seed", "overrides"}
    given = dict(part.partition("=")[::2] for part in changes.split(";"))
    if unknown := set(given) - known:
        raise ValueError(
            f"arm {one_line(repr(changes))}: {one_line(', '.join(sorted(unknown)))} is neither "
            f"{expected} nor a setting (key=value)"
        )
    kinds = get_type_hints(Config)
    values: dict[str, Any] = {k: v if kinds[k] is str else read_value(v) for k, v in given.items()}
    if "terms" in values:
        values["terms"] = tuple(str(values["terms"]).split("+"))
    return replace(config, **values)


def compare(
    config: Config,
    output: Path,
    seeds: tuple[int, ...],
    arms: list[str],
    select: float = 0.0,
    cluster: str | None = None,
) -> tuple[dict, list[ArmFigures]]:
    """Run the missing runs; write compare.csv, compare.md, metrics.json and report.html.

    The result is the teacher's figures, and the figures of each arm. The primary comparison,
    ``distilled`` minus ``plain``, and the plan are stored before the first run, in
    ``primary.json``. Runs of ``plain:time`` come last: their length follows from the times of
    both.

    Args:
        config: settings of the arm ``distilled``; its seed is ignored.
        output: folder of the experiment; each run has its own in ``runs``.
        select: evaluate on this share of the training frames (not trained on, see `hold_out`)
            instead of the validation split, to choose settings; 0: on that split.
        cluster: "host:port" of a Ray cluster, one task per run; its nodes must see ``output``, the
            data and the models under the same paths. None: one run after the other, here.

    Raises:
        ValueError: no teacher, an unknown arm, or a folder with a run of other settings.
        DataError: no class that counts has an object.
    """
    if not config.distils:
        raise ValueError("compare needs a teacher")
    config = replace(config, same_flights=select > 0)
    configs = _configs(arms, config)  # refused before the first run
    arms = list(configs)
    seeds = tuple(dict.fromkeys(seeds))
    output.mkdir(parents=True, exist_ok=True)
    ours = [DISTILLED] if DISTILLED in arms else [arm for arm in arms if is_ours(arm)]
    plan = Plan(tuple(arms), seeds, length=length_text(config.epochs, config.steps))
    primary = name_primary(output, ours or [DISTILLED], PLAIN, select, plan)
    data = Path(config.data)
    if select:
        data = hold_out(data, select, output)
    data = data.resolve()  # a task runs elsewhere
    teacher = evaluate_teacher(config, data, output)
    classes = counted_classes(teacher)
    record_process(output, seeds, classes, image_sizes(config))
    left_out = _left_out(output, arms, seeds)
    rows: list[dict] = []
    for timed in (False, True):
        names = [(arm, seed) for seed in seeds for arm in arms if (arm == TIMED) == timed]
        runs = [_run(output.resolve(), arm, seed, configs[arm], data) for arm, seed in names]
        results = each(cluster, _train, runs) if cluster and runs else (_train(*r) for r in runs)
        for (arm, seed), (run, folder, _) in zip(names, runs, strict=True):
            total = len(seeds) * len(arms)
            print(f"[{len(rows) + 1}/{total}] {arm}, seed {seed}", flush=True)
            rows.append(_row(arm, run, folder, next(results), classes))
            write_text(output / "compare.csv", as_csv(rows))
            summaries = write_tables(output, teacher, primary, rows, plan, left_out)
    _write_report(output, data, config, teacher, arms, seeds[0])
    return teacher, summaries


def image_sizes(config: Config) -> str:
    """Return the input sizes of both models in px, for the provenance."""
    return f"student {config.imgsz}, teacher {config.teacher_imgsz}"


def _configs(arms: Sequence[str], config: Config) -> dict[str, Config]:
    """Return the settings of the arms, in their order, without arms that are the same run."""
    if TIMED in arms:  # it follows from these
        arms = [*arms, PLAIN, DISTILLED]
    configs = {arm: arm_config(arm, config) for arm in arms}
    settings = {arm: (own, arm == TIMED) for arm, own in configs.items()}
    return {arm: configs[arm] for arm in distinct(settings, (PLAIN, DISTILLED))}


def _run(
    output: Path, arm: str, seed: int, config: Config, data: Path
) -> tuple[Config, Path, bool]:
    """Return settings and folder of a run, and whether it was started before.

    Raises:
        ValueError: it was started with other settings.
    """
    run = replace(config, data=str(data), seed=seed)
    if arm == TIMED:
        times = [training_seconds(_run_folder(output, name, seed)) for name in (DISTILLED, PLAIN)]
        key = "steps" if run.steps else "epochs"
        length = max(1, round(getattr(run, key) * times[0] / times[1]))
        run = replace(run, **{key: length})
    folder = _run_folder(output, arm, seed)
    started = (folder / "config.yaml").is_file()
    if started and read_config(folder) != run:
        raise ValueError(
            f"{one_line(folder)} has a run with other settings: choose another --output"
        )
    return run, folder, started


def _row(arm: str, run: Config, folder: Path, metrics: dict, classes: Sequence[str]) -> dict:
    """Return the row of a finished run, its scores over the classes that count."""
    student = metrics["student"]
    return {
        "arm": arm,
        "seed": run.seed,
        "steps": _steps(run, folder),
        **scores_over(student, classes),
        "seconds": training_seconds(folder),
        "parameters": student["parameters"],
        "classes": ";".join(classes),
        "imgsz": run.imgsz,
    }


def scores_over(student: dict, classes: Sequence[str]) -> dict[str, float | None]:
    """Return the scores of a row as means over some classes; ``student``: of `evaluate`."""
    found = over_classes(student, classes)
    return {score: found[score] for score in SCORES}


def _steps(run: Config, folder: Path) -> int | None:
    """Return the training steps of a run; None: its batch was chosen by the trainer."""
    epochs, steps = run.epochs_and_steps
    if not steps and run.batch > 0:
        images = len(image_paths(load_data(folder / "data.yaml").train))
        steps = math.ceil(images / run.batch)
    return epochs * steps or None


def training_seconds(folder: Path) -> float:
    """Return how long a run trained, over all processes that continued it.

    The time in its results.csv starts anew in each process. One that ended sooner than the first
    epoch of the next is missed.
    """
    times = polars.read_csv(read_limited(folder / "results.csv"))["time"].to_list()
    return float(sum(time for time, after in pairwise([*times, 0.0]) if after < time))


def evaluate_teacher(config: Config, data: Path, output: Path) -> dict:
    """Return the teacher's figures on the validation split at the student's input size.

    Gap shares compare models at equal input. Where the teacher teaches at another size, its
    figures there are at the key ``at_teacher_imgsz``. Both are kept in ``output``.

    Raises:
        ValueError: also as UnusableModelError and DataError, models or data cannot be used.
    """
    if note := repeated_note(load_data(data)):
        print_line(f"NOTE {note}")
    sizes = dict.fromkeys((config.imgsz, config.teacher_imgsz))
    found = [_teacher_at(size, config.teacher, data, output) for size in sizes]
    return {**found[0], "at_teacher_imgsz": found[1] if len(found) > 1 else None}


def _teacher_at(imgsz: int, teacher: str, data: Path, output: Path) -> dict:
    cached = output / f"teacher-{imgsz}.json"
    if not cached.is_file():
        model, _ = load_model(teacher)
        figures = {**evaluate(model, data, imgsz=imgsz), **cost(model, imgsz), "imgsz": imgsz}
        if not counted_classes(figures):
            raise DataError(
                f"{one_line(data)}: expected a labelled object of a class of the teacher "
                f"({one_line(', '.join(figures['per_class']), 200)}) in the validation split, got "
                "none; label some, or take another split"
            )
        write_text(cached, json.dumps(figures, indent=1))
    figures = read_json(cached)
    if (
        not isinstance(figures, dict)
        or not is_score(figures.get("map50_95", ""))
        or not isinstance(figures.get("per_class"), dict)
        or not counted_classes(figures)
    ):
        raise ValueError(
            f"{one_line(cached)}: expected a teacher's figures on labelled objects; delete it"
        )
    return figures


def _train(run: Config, folder: Path, started: bool) -> dict:
    return distill(run, folder, resume=started, measure_teacher=False)


def _write_report(
    output: Path, data: Path, config: Config, teacher: dict, arms: list[str], seed: int
) -> None:
    """Write the page of the experiment; figures and images of models are those of one seed."""
    models, curves = {"teacher": teacher}, {}
    folders = {arm: _run_folder(output, arm, seed) for arm in arms}
    for arm, folder in folders.items():
        metrics = read_metrics(folder / "metrics.json")
        student = metrics["student"]
        scores = scores_over(student, counted_classes(teacher))
        models[f"{arm}, seed {seed}"] = {**student, **scores}
        curves[f"{arm}, seed {seed}"] = folder / "curves.png"
    sides = None
    if PLAIN in arms and DISTILLED in arms:
        plain, distilled = (folders[arm] / "best.pt" for arm in (PLAIN, DISTILLED))
        sides = compare_frames(plain, distilled, data, config.imgsz)
    table = (output / "compare.md").read_text(encoding="utf-8")
    write_report(output / "report.html", "Distillation compared", models, curves, sides, table)


def _run_folder(output: Path, arm: str, seed: int) -> Path:
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in arm)
    return output / "runs" / f"{name}-seed{seed}"


def _left_out(output: Path, arms: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Return the names of the finished runs of an experiment that have another arm or seed."""
    own = {_run_folder(output, arm, seed).name for arm in arms for seed in seeds}
    finished = (path.parent.name for path in (output / "runs").glob(f"*/{METRICS}"))
    return sorted(name for name in finished if name not in own)


def hold_out(data: Path, share: float, output: Path) -> Path:
    """Write a data set whose validation split is about a share in (0, 1) of the training frames.

    Whole flights are held out where the names of the frames tell `STRETCHES` or more
    (`retraining.stretches`). Otherwise stretches of consecutive frames are, in several places, so
    that most frames have no neighbor on the other side. Tiles of a frame stay together
    (`label_subsets`). The result is the new data.yaml.

    Raises:
        ValueError: no frame would be left on one side.
    """
    dataset = load_data(data)
    groups = frames(image_paths(dataset.train))
    places = min(STRETCHES, round(len(groups) * share))
    if share >= 1 or places < 1:
        raise ValueError(f"a share of {share} of {len(groups)} frames leaves nothing on one side")
    blocks = frame_blocks([frame_path(group[0]) for group in groups], STRETCHES)
    if blocks.unit == "flight":
        chosen = np.isin(blocks.of_frame, held_out_flights(np.bincount(blocks.of_frame), share))
    else:  # the end of each of the equal parts of the list
        chosen = np.arange(len(groups)) * places / len(groups) % 1 >= 1 - share
    lists: dict[str, list[Path]] = {"train": [], "val": []}
    for group, held_out in zip(groups, chosen, strict=True):
        lists["val" if held_out else "train"] += group
    train, val = ((output / f"{name}.txt").resolve() for name in lists)
    write_list(train, lists["train"])
    write_list(val, lists["val"])
    split = replace(dataset, train=train, val=val, test=None)
    return split.write_resolved(output / "data.yaml")


def held_out_flights(sizes: np.ndarray, share: float) -> list[int]:
    """Return the flights to hold out, spread over all: about a share of the frames, at least one.

    ``sizes``: int64 (N,), frames of each flight.
    """
    found, missing = [], 0.0
    for flight, size in enumerate(sizes.tolist()):
        missing += share * size
        if missing >= size / 2:
            found.append(flight)
            missing -= size
    return found[: len(sizes) - 1] or [len(sizes) // 2]
