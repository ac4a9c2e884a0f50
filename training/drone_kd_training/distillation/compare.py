# SPDX-License-Identifier: AGPL-3.0-or-later
"""The paired experiment: what distillation brings, against the student alone and the built-in.

Every arm trains the same student from the same weights on the same batches, once per seed; the
figures are differences within a seed. Finished runs are kept, so that the same command goes on
where it was.
"""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
from scipy import stats

from drone_kd_training.data.dataset import image_paths, load_data, write_text
from drone_kd_training.distillation.config import NO_TEACHER, Config, read_config
from drone_kd_training.distillation.distill import distill
from drone_kd_training.evaluation.evaluate import evaluate
from drone_kd_training.html_report import compare_frames, write_report
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.options import read_value
from drone_kd_training.ray_cluster import each
from drone_kd_training.tables import format_score

PLAIN, DISTILLED, BUILTIN = "plain", "distilled", "builtin"
# Ultralytics' own distillation has one weight, `dis` (default 6): tuned over these.
BUILTIN_WEIGHTS = (0.5, 1.0, 2.0, 6.0)
# From how many places `hold_out` takes its frames.
STRETCHES = 8
SCORES = ("map50_95", "map50", "ap_tiny", "ap_small", "ap_medium")


@dataclass(frozen=True)
class Summary:
    """One arm over all its seeds; scores in [0, 1], intervals of 95 % by Student's t over seeds.

    ``gain`` and ``gap_share`` are against the student alone of the same seed; None where it is
    missing, or where there are too few seeds for an interval.
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
    """The student alone, the tuned built-in, ours, and ours minus each of its terms."""
    without = [
        "terms=" + "+".join(t for t in config.terms if t != left_out)
        for left_out in config.terms
        if len(config.terms) > 1
    ]
    return [PLAIN, *(f"{BUILTIN}:{w:g}" for w in BUILTIN_WEIGHTS), DISTILLED, *without]


def arm_config(arm: str, config: Config) -> Config:
    """The run of an arm.

    ``plain``; ``distilled``; ``builtin:W``, Ultralytics' distill_model with dis=W; or changes to
    ``distilled`` as ``key=value`` joined by ``;`` (several terms joined by ``+``).

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
    known = {f.name for f in fields(Config)} - {"data", "seed", "overrides"}
    changes = dict(part.partition("=")[::2] for part in arm.split(";"))
    if unknown := set(changes) - known:
        raise ValueError(
            f"arm {arm!r}: {', '.join(sorted(unknown))} is neither {PLAIN}, {DISTILLED}, "
            f"{BUILTIN}:WEIGHT nor a setting (key=value)"
        )
    values = {k: read_value(v) for k, v in changes.items()}
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
    """Run what is not done yet; write compare.csv, compare.md, metrics.json, report.html.

    Args:
        config: the run of the arm ``distilled``; its seed is ignored.
        output: folder of the experiment; each run has its own in ``runs``.
        seeds: every arm is trained once with each.
        arms: see `arm_config`.
        select: measure on this share of the training frames (not trained on, see `hold_out`)
            instead of the validation split: for choosing settings.
        cluster: "host:port" of a Ray cluster, whose nodes all see `output`, the data and the
            models under these paths: a task per run (default: one after the other, here).

    Returns:
        The teacher's figures, and a summary per arm.
    """
    if not config.distils:
        raise ValueError("compare needs a teacher")
    configs = {arm: arm_config(arm, config) for arm in arms}  # refused before the first run
    output.mkdir(parents=True, exist_ok=True)
    data = Path(config.data)
    if select:
        data = hold_out(data, select, output)
    teacher_file = output / "teacher.json"
    if not teacher_file.is_file():
        size = config.teacher_imgsz
        teacher = evaluate(load_model(config.teacher)[0], data, imgsz=size)
        write_text(teacher_file, json.dumps(teacher, indent=1))
    teacher = json.loads(teacher_file.read_text(encoding="utf-8"))
    names, runs = [], []
    for seed in seeds:
        for arm in arms:
            # Absolute: a task runs elsewhere.
            folder = _run_folder(output, arm, seed).resolve()
            run = replace(configs[arm], data=str(data.resolve()), seed=seed)
            started = (folder / "config.yaml").is_file()
            if started and read_config(folder) != run:
                raise ValueError(
                    f"{folder} is of a run with other settings: choose another --output"
                )
            names.append((arm, seed))
            runs.append((run, folder, started))
    results = each(cluster, _train, runs) if cluster else (_train(*run) for run in runs)
    rows: list[dict] = []
    for number, (arm, seed) in enumerate(names, start=1):
        print(f"[{number}/{len(names)}] {arm}, seed {seed}", flush=True)
        metrics = next(results)
        figures = {score: metrics["student"][score] for score in SCORES}
        rows.append({"arm": arm, "seed": seed, **figures, "seconds": metrics["seconds"]})
        write_text(output / "compare.csv", as_csv(rows))
        summaries = summarise(rows, teacher["map50_95"] or 0.0)
        write_text(output / "compare.md", as_markdown(teacher, summaries, rows))
        write_text(output / "metrics.json", as_json(teacher, summaries, rows))
    _write_report(output, data, config, teacher, arms, seeds[0])
    return teacher, summaries


def _train(run: Config, folder: Path, started: bool) -> dict:
    return distill(run, folder, resume=started, measure_teacher=False)


def _write_report(
    output: Path, data: Path, config: Config, teacher: dict, arms: list[str], seed: int
) -> None:
    """The page of the experiment; figures and pictures of models are those of one seed."""
    models, curves = {"teacher": teacher}, {}
    for arm in arms:
        folder = _run_folder(output, arm, seed)
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        models[f"{arm}, seed {seed}"] = metrics["student"]
        curves[f"{arm}, seed {seed}"] = folder / "curves.png"
    sides = None
    if PLAIN in arms and DISTILLED in arms:
        pair = (_run_folder(output, arm, seed) / "best.pt" for arm in (PLAIN, DISTILLED))
        sides = compare_frames(*pair, data, config.imgsz)
    table = (output / "compare.md").read_text(encoding="utf-8")
    write_report(output / "report.html", "Distillation compared", models, curves, sides, table)


def _run_folder(output: Path, arm: str, seed: int) -> Path:
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in arm)
    return output / "runs" / f"{name}-seed{seed}"


def hold_out(data: Path, share: float, output: Path) -> Path:
    """Write a data set whose validation split are stretches of the training frames, ``share`` of
    them in all.

    By name, so that most frames have no neighbour on the other side; in several places, so that
    the part kept apart shows what the whole does.
    """
    dataset = load_data(data)
    paths = image_paths(dataset.train)
    places = min(STRETCHES, round(len(paths) * share))
    if share >= 1 or places < 1:
        raise ValueError(f"a share of {share} of {len(paths)} frames leaves nothing on one side")
    kept, apart = [], []
    for i, path in enumerate(paths):
        # Of each of the equal parts of the list the end is kept apart.
        within = i * places / len(paths) % 1
        (apart if within >= 1 - share else kept).append(path)
    lists = {"train": kept, "val": apart}
    for name, chosen in lists.items():
        write_text(output / f"{name}.txt", "\n".join(map(str, chosen)) + "\n")
    split = replace(dataset, **{n: (output / f"{n}.txt").resolve() for n in lists}, test=None)
    return split.write_resolved(output / "data.yaml")


def summarise(rows: list[dict], teacher: float) -> list[Summary]:
    """One `Summary` per arm, in the order of the rows; ``teacher``: its mAP50-95."""
    plain = {row["seed"]: row for row in rows if row["arm"] == PLAIN}
    found = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        scores = [row["map50_95"] or 0.0 for row in own]
        pairs = [(row, plain[row["seed"]]) for row in own if row["seed"] in plain]
        gains = [(a["map50_95"] or 0.0) - (b["map50_95"] or 0.0) for a, b in pairs]
        gaps = [teacher - (b["map50_95"] or 0.0) for _, b in pairs]
        mean_gap = float(np.mean(gaps)) if gaps else 0.0
        found.append(
            Summary(
                arm=arm,
                seeds=len(own),
                mean=float(np.mean(scores)),
                spread=float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
                gain=float(np.mean(gains)) if gains and arm != PLAIN else None,
                gain_interval=interval(gains) if arm != PLAIN else None,
                # A share of next to nothing says nothing: quoted from 3 points of AP on.
                gap_share=float(np.mean(gains)) / mean_gap
                if arm != PLAIN and mean_gap >= 0.03
                else None,
                time_ratio=float(np.median([a["seconds"] / b["seconds"] for a, b in pairs]))
                if pairs
                else None,
            )
        )
    return found


def interval(differences: list[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean of paired differences (Student's t); None below 2 pairs."""
    n = len(differences)
    if n < 2:
        return None
    error = float(np.std(differences, ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * error
    mean = float(np.mean(differences))
    return mean - half, mean + half


def best_builtin(summaries: list[Summary]) -> Summary | None:
    """The built-in with the weight that scored best on this very table, which favours it."""
    own = [s for s in summaries if s.arm.startswith(BUILTIN)]
    return max(own, key=lambda s: s.mean, default=None)


def against(rows: list[dict], arm: str) -> list[float]:
    """mAP50-95 of ours minus that of another arm, seed by seed."""
    other = {r["seed"]: r["map50_95"] or 0.0 for r in rows if r["arm"] == arm}
    own = {r["seed"]: r["map50_95"] or 0.0 for r in rows if r["arm"] == DISTILLED}
    return [own[seed] - other[seed] for seed in own if seed in other]


def as_json(teacher: dict, summaries: list[Summary], rows: list[dict]) -> str:
    """The experiment's figures, scores in [0, 1]."""
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
    """The rows as CSV text, one line per run."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_markdown(teacher: dict, summaries: list[Summary], rows: list[dict]) -> str:
    """The table of an experiment, with ours against the best built-in and against other terms."""
    lines = [
        "| arm | seeds | mAP50-95 | against the student alone [95 %] | gap share | time |",
        "|---|---|---|---|---|---|",
        f"| teacher | | {format_score(teacher['map50_95'])} | | | |",
    ]
    for s in summaries:
        spread = "" if s.spread is None else f" ± {100 * s.spread:.1f}"
        gain = "" if s.gain is None else f"{100 * s.gain:+.1f}"
        if s.gain_interval:
            gain += " [{:+.1f}, {:+.1f}]".format(*(100 * x for x in s.gain_interval))
        share = "" if s.gap_share is None else f"{100 * s.gap_share:.0f} %"
        time = "" if s.time_ratio is None else f"{s.time_ratio:.2f}"
        mean = f"{format_score(s.mean)}{spread}"
        lines.append(f"| {s.arm} | {s.seeds} | {mean} | {gain} | {share} | {time} |")
    best = best_builtin(summaries)
    others = [s.arm for s in summaries if s is best or s.arm.startswith("terms=")]
    for arm in others:
        differences = against(rows, arm)
        if limits := interval(differences):
            lines += [
                "",
                f"{DISTILLED} - {arm}: {100 * np.mean(differences):+.1f} "
                "[{:+.1f}, {:+.1f}]".format(*(100 * x for x in limits)),
            ]
    return "\n".join(lines) + "\n"
