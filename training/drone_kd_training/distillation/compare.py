# SPDX-License-Identifier: AGPL-3.0-or-later
"""Paired experiment: distillation against the baseline and Ultralytics' own distillation.

Every arm trains the same student from the same weights on the same batches, once per seed; the
figures are differences within a seed. Finished runs are kept, so the same command continues an
interrupted experiment.
"""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from scipy import stats

from drone_kd.files import write_text
from drone_kd.parsing import read_json
from drone_kd.text import one_line
from drone_kd_training.data.dataset import image_paths, load_data, write_list
from drone_kd_training.dataclass_options import read_value
from drone_kd_training.distillation.config import NO_TEACHER, Config, read_config
from drone_kd_training.distillation.distill import distill
from drone_kd_training.distillation.label_subsets import frames
from drone_kd_training.distillation.run_report import is_score, read_metrics
from drone_kd_training.evaluation.evaluate import evaluate
from drone_kd_training.html_report import compare_frames, write_report
from drone_kd_training.models.checkpoints import cost, load_model
from drone_kd_training.ray_cluster import each
from drone_kd_training.tables import format_score

PLAIN, DISTILLED, BUILTIN = "plain", "distilled", "builtin"
# Values to tune the one weight of Ultralytics' own distillation, `dis` (default 6).
BUILTIN_WEIGHTS = (0.5, 1.0, 2.0, 6.0)
# Number of stretches of frames that `hold_out` takes.
STRETCHES = 8
# The share of a smaller gap between teacher and baseline means nothing, in mAP.
MIN_GAP = 0.03
SCORES = ("map50_95", "map50", "ap_tiny", "ap_small", "ap_medium")


@dataclass(frozen=True)
class Summary:
    """One arm over all its seeds; scores in [0, 1], 95 % intervals by Student's t over seeds.

    ``gain`` and ``gap_share`` are against the baseline of the same seed; None if it is missing, or
    if there are too few seeds for an interval.
    """

    arm: str
    seeds: int
    mean: float
    spread: float | None
    gain: float | None
    gain_interval: tuple[float, float] | None
    gap_share: float | None
    time_ratio: float | None


def default_arms(config: Config) -> list[str]:
    """Return the baseline, the tuned built-in, ours, and ours minus each of its terms."""
    without = [
        "terms=" + "+".join(term for term in config.terms if term != left_out)
        for left_out in config.terms
        if len(config.terms) > 1
    ]
    return [PLAIN, *(f"{BUILTIN}:{w:g}" for w in BUILTIN_WEIGHTS), DISTILLED, *without]


def arm_config(arm: str, config: Config) -> Config:
    """Return the settings of an arm.

    An arm is ``plain`` (the baseline); ``distilled``; ``builtin:W``, Ultralytics' distill_model
    with dis=W; or changes to ``distilled`` as ``key=value`` joined by ``;`` (several terms joined
    by ``+``).

    Raises:
        ValueError: an arm that is none of these.
    """
    name, _, weight = arm.partition(":")
    if arm == PLAIN:
        return replace(config, teacher=NO_TEACHER)
    if arm == DISTILLED:
        return config
    if name == BUILTIN:
        builtin = {"distill_model": config.teacher, "dis": float(weight)}
        return replace(config, teacher=NO_TEACHER, overrides={**config.overrides, **builtin})
    described = f"{PLAIN}, {DISTILLED}, {BUILTIN}:WEIGHT"
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
) -> tuple[dict, list[Summary]]:
    """Run the missing runs; write compare.csv, compare.md, metrics.json and report.html.

    The result is the teacher's figures, and a summary per arm.

    Args:
        config: settings of the arm ``distilled``; its seed is ignored.
        output: folder of the experiment; each run has its own in ``runs``.
        select: evaluate on this share of the training frames (not trained on, see `hold_out`)
            instead of the validation split, to choose settings; 0: on that split.
        cluster: "host:port" of a Ray cluster, one task per run; its nodes must see ``output``, the
            data and the models under the same paths. None: one run after the other, here.

    Raises:
        ValueError: no teacher, an unknown arm, or a folder with a run of other settings.
    """
    if not config.distils:
        raise ValueError("compare needs a teacher")
    config = replace(config, same_flights=select > 0)
    configs = {arm: arm_config(arm, config) for arm in arms}  # refused before the first run
    output.mkdir(parents=True, exist_ok=True)
    data = Path(config.data)
    if select:
        data = hold_out(data, select, output)
    teacher = evaluate_teacher(config, data, output)
    names = [(arm, seed) for seed in seeds for arm in arms]
    runs = []
    for arm, seed in names:
        run = replace(configs[arm], data=str(data.resolve()), seed=seed)
        folder = _run_folder(output, arm, seed).resolve()  # a task runs elsewhere
        started = (folder / "config.yaml").is_file()
        if started and read_config(folder) != run:
            raise ValueError(f"{folder} has a run with other settings: choose another --output")
        runs.append((run, folder, started))
    results = each(cluster, _train, runs) if cluster else (_train(*run) for run in runs)
    rows: list[dict] = []
    for number, (arm, seed) in enumerate(names, start=1):
        print(f"[{number}/{len(names)}] {arm}, seed {seed}", flush=True)
        metrics = next(results)
        scores = {score: metrics["student"][score] for score in SCORES}
        rows.append({"arm": arm, "seed": seed, **scores, "seconds": metrics["seconds"]})
        write_text(output / "compare.csv", as_csv(rows))
        summaries = summarise(rows, teacher["map50_95"] or 0.0)
        write_text(output / "compare.md", as_markdown(teacher, summaries, rows))
        write_text(output / "metrics.json", as_json(teacher, summaries, rows))
    _write_report(output, data, config, teacher, arms, seeds[0])
    return teacher, summaries


def evaluate_teacher(config: Config, data: Path, output: Path) -> dict:
    """Return the teacher's figures on the validation split at the student's input size.

    Gap shares compare models at equal input. Where the teacher teaches at another size, its
    figures there are at the key ``at_teacher_imgsz``. Both are kept in ``output``.

    Raises:
        ValueError: also as UnusableModelError and DataError, models or data cannot be used.
    """
    sizes = dict.fromkeys((config.imgsz, config.teacher_imgsz))
    found = [_teacher_at(size, config.teacher, data, output) for size in sizes]
    return {**found[0], "at_teacher_imgsz": found[1] if len(found) > 1 else None}


def _teacher_at(imgsz: int, teacher: str, data: Path, output: Path) -> dict:
    cached = output / f"teacher-{imgsz}.json"
    if not cached.is_file():
        model, _ = load_model(teacher)
        figures = {**evaluate(model, data, imgsz=imgsz), **cost(model, imgsz), "imgsz": imgsz}
        write_text(cached, json.dumps(figures, indent=1))
    figures = read_json(cached)
    if not isinstance(figures, dict) or not is_score(figures.get("map50_95", "")):
        raise ValueError(f"{one_line(cached)}: expected a teacher's figures; delete it")
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
        models[f"{arm}, seed {seed}"] = metrics["student"]
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


def hold_out(data: Path, share: float, output: Path) -> Path:
    """Write a data set whose validation split is a share in (0, 1) of the training frames.

    Stretches of consecutive frames are held out, so that most frames have no neighbor on the other
    side; in several places, so that they are representative. Tiles of a frame stay together
    (`label_subsets`). The result is the new data.yaml.

    Raises:
        ValueError: no frame would be left on one side.
    """
    dataset = load_data(data)
    groups = frames(image_paths(dataset.train))
    places = min(STRETCHES, round(len(groups) * share))
    if share >= 1 or places < 1:
        raise ValueError(f"a share of {share} of {len(groups)} frames leaves nothing on one side")
    lists: dict[str, list[Path]] = {"train": [], "val": []}
    for i, group in enumerate(groups):
        # The end of each of the equal parts of the list is held out.
        position = i * places / len(groups) % 1
        lists["val" if position >= 1 - share else "train"] += group
    train, val = ((output / f"{name}.txt").resolve() for name in lists)
    write_list(train, lists["train"])
    write_list(val, lists["val"])
    split = replace(dataset, train=train, val=val, test=None)
    return split.write_resolved(output / "data.yaml")


def summarise(rows: list[dict], teacher: float) -> list[Summary]:
    """Return one `Summary` per arm, in the order of the rows; ``teacher``: its mAP50-95."""
    plain = {row["seed"]: row for row in rows if row["arm"] == PLAIN}
    return [
        _summarise_arm(arm, [row for row in rows if row["arm"] == arm], plain, teacher)
        for arm in dict.fromkeys(row["arm"] for row in rows)
    ]


def _summarise_arm(arm: str, own: list[dict], plain: dict[int, dict], teacher: float) -> Summary:
    """Summarise the runs of one arm; ``plain``: the baseline's run by seed."""
    scores = [_score(row) for row in own]
    pairs = [(row, plain[row["seed"]]) for row in own if row["seed"] in plain]
    gains = [_score(row) - _score(baseline) for row, baseline in pairs]
    gaps = [teacher - _score(baseline) for _, baseline in pairs]
    times = [row["seconds"] / baseline["seconds"] for row, baseline in pairs]
    compared = bool(pairs) and arm != PLAIN
    gain = float(np.mean(gains)) if compared else None
    mean_gap = float(np.mean(gaps)) if gaps else 0.0
    return Summary(
        arm=arm,
        seeds=len(own),
        mean=float(np.mean(scores)),
        spread=float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        gain=gain,
        gain_interval=interval(gains) if compared else None,
        gap_share=gain / mean_gap if gain is not None and mean_gap >= MIN_GAP else None,
        time_ratio=float(np.median(times)) if times else None,
    )


def _score(row: dict) -> float:
    return row["map50_95"] or 0.0


def interval(differences: list[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean of paired differences by Student's t, None below two."""
    n = len(differences)
    if n < 2:
        return None
    error = float(np.std(differences, ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * error
    mean = float(np.mean(differences))
    return mean - half, mean + half


def best_builtin(summaries: list[Summary]) -> Summary | None:
    """Return the built-in with the weight that scored best in this table, which favors it."""
    own = [s for s in summaries if s.arm.startswith(BUILTIN)]
    return max(own, key=lambda s: s.mean, default=None)


def against(rows: list[dict], arm: str) -> list[float]:
    """Return the mAP50-95 of ours minus that of another arm, seed by seed."""
    other = {row["seed"]: _score(row) for row in rows if row["arm"] == arm}
    own = {row["seed"]: _score(row) for row in rows if row["arm"] == DISTILLED}
    return [own[seed] - other[seed] for seed in own if seed in other]


def as_json(teacher: dict, summaries: list[Summary], rows: list[dict]) -> str:
    """Return the figures of the experiment as JSON, scores in [0, 1]."""
    best = best_builtin(summaries)
    differences = [] if best is None else against(rows, best.arm)
    return json.dumps(
        {
            "teacher": teacher,
            "arms": {s.arm: asdict(s) for s in summaries},
            "best_builtin": best and best.arm,
            "distilled_minus_best_builtin": float(np.mean(differences)) if differences else None,
            "distilled_minus_best_builtin_interval": interval(differences),
            "runs": rows,
        },
        indent=1,
    )


def as_csv(rows: list[dict]) -> str:
    """Return the rows as CSV text, one line per run."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_markdown(teacher: dict, summaries: list[Summary], rows: list[dict]) -> str:
    """Return the table of an experiment, and ours against the best built-in and other terms."""
    lines = [
        "| arm | seeds | mAP50-95 | against the student alone [95 %] | gap share | time |",
        "|---|---|---|---|---|---|",
        *(f"| {name} | | {format_score(score)} | | | |" for name, score in teacher_rows(teacher)),
    ]
    for s in summaries:
        spread = "" if s.spread is None else f" ± {100 * s.spread:.1f}"
        gain = "" if s.gain is None else f"{100 * s.gain:+.1f}"
        if s.gain_interval:
            gain += f" {limits(s.gain_interval)}"
        share = "" if s.gap_share is None else f"{100 * s.gap_share:.0f} %"
        time = "" if s.time_ratio is None else f"{s.time_ratio:.2f}"
        mean = f"{format_score(s.mean)}{spread}"
        lines.append(f"| {s.arm} | {s.seeds} | {mean} | {gain} | {share} | {time} |")
    best = best_builtin(summaries)
    for arm in (s.arm for s in summaries if s is best or s.arm.startswith("terms=")):
        differences = against(rows, arm)
        if found := interval(differences):
            mean = 100 * np.mean(differences)
            lines += ["", f"{DISTILLED} - {arm}: {mean:+.1f} {limits(found)}"]
    return "\n".join(lines) + "\n"


def teacher_rows(teacher: dict) -> list[tuple[str, float | None]]:
    """Return name and mAP50-95 of the teacher, and at the size at which it teaches, if another."""
    large = teacher.get("at_teacher_imgsz")
    rows = [("teacher", teacher["map50_95"])]
    return rows + ([(f"teacher at {large['imgsz']} px", large["map50_95"])] if large else [])


def limits(interval: tuple[float, float]) -> str:
    """Return an interval of scores in [0, 1] in points, e.g. "[-0.3, +1.2]"."""
    return "[{:+.1f}, {:+.1f}]".format(*(100 * x for x in interval))
