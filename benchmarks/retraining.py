# SPDX-License-Identifier: AGPL-3.0-or-later
"""Gain of retraining, forgetting on the base domain, and decisions of the guard.

    python -m benchmarks.retraining --data HIT-UAV/data.yaml --weights WEIGHTS --output OUT

Base domain: daytime flights; new domain: night flights, by the data's file names. Without --data
both are synthetic: places by day, and other places as a thermal camera shows them at night. The
deployed model is YOLOv8n, the teacher YOLOv8s, both trained on the base domain alone. Training
frames are night flights of the training split in flight order: mined by `training mine`, or
sampled from the frames that mining may choose from. Test frames are flights of the validation
split. Finished rows stay in the output folder: the same command continues, --rows N stops after N
further rows, and --rows 0 only prints the tables. Once the models are trained and the first row of
each kind is done, processes with different --seeds may run in parallel.

    python -m benchmarks.retraining --csv benchmarks/retraining.csv

prints the tables of published rows, and writes what their labels cost into the same file.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path

import numpy as np
import yaml

from benchmarks.label_cost import (
    DRAWN_BOX_S,
    LabelCost,
    add_options,
    format_ratio,
    read_options,
)
from benchmarks.rig import markdown_head, markdown_row
from drone_kd.files import write_text
from drone_kd.media.image_files import read_image
from drone_kd.progress import track
from drone_kd.simulation.scene import FlightPlan, fly
from drone_kd_training.data.dataset import DataSet, image_paths, label_path, load_data
from drone_kd_training.data.generate import write_data_yaml, write_drawn
from drone_kd_training.distillation.config import Config
from drone_kd_training.distillation.distill import distill
from drone_kd_training.evaluation.evaluate import evaluate
from drone_kd_training.mining.config import Settings
from drone_kd_training.mining.flights import plan as plan_flights
from drone_kd_training.mining.mine import mine
from drone_kd_training.mining.reasons import SHARES
from drone_kd_training.mining.selection import held_out
from drone_kd_training.mining.student_and_teacher import open_models
from drone_kd_training.retraining.retrain import CANDIDATE, GENTLE, Plan, retrain
from drone_kd_training.tables import as_csv, format_score
from drone_kd_training.teachers.fusion import rescale
from drone_kd_training.teachers.predict import predict, prediction_lines
from drone_kd_training.teachers.soft_labels import IGNORE_BAND

IMGSZ, BATCH, EPOCHS = 320, 16, 2
BASE_EPOCHS = 6
WIDTH, HEIGHT = 640, 512  # of HIT-UAV's frames and of synthetic ones
SHIFT_PX = 20
# Synthetic flights: split, whether at night, places, frames of each.
SYNTHETIC = (
    ("train", False, 30, 10),
    ("train", True, 20, 30),
    ("val", False, 10, 12),
    ("val", True, 10, 15),
)
SEEDS = (0, 1, 2)
PER_SCENE = 5  # as `training mine` has it
DOMAINS = ("new", "base")
GUARD_BASE = ("guard_base_before", "guard_base_after")
COMMAND = "python -m benchmarks.retraining"


@dataclass(frozen=True)
class Arm:
    """One way to retrain; for `replay` and `keep` see `retraining.retrain.Plan`."""

    name: str  # of its rows
    frames: int  # number of new training frames
    picked: str = "random"  # or "mined" (as `training mine` does it), or a single mining reason
    labels: str = "true"  # or "teacher's", or "adapted teacher's"
    pseudo_threshold: float = IGNORE_BAND[1]  # least score of a pseudo-label
    fault: str = ""  # or "shifted" or "swapped", in training and test labels
    replay: float = Plan.replay
    keep: float = Plan.keep
    domain: str = "night"  # or "day" for an arm without new data


@dataclass(frozen=True)
class Shared:
    """Inputs of all rows: a data.yaml for "base" and for "new", and two checkpoints."""

    sets: dict[str, Path]
    flying: Path
    teacher: Path
    output: Path


def gain(picked: str, frames: int, labels: str) -> Arm:
    """An arm whose gain is one of the figures."""
    return Arm(f"{picked} {frames}, {labels} labels", frames, picked, labels)


NO_REPLAY = Arm("random 100, true labels, no replay", 100, replay=0.0)
SURE_FROM = [
    Arm(f"mined 100, {who} labels from {threshold}", 100, "mined", who, threshold)
    for who, threshold in (("teacher's", 0.3), ("teacher's", 0.45), ("adapted teacher's", 0.3))
]
BY_ONE_REASON = [
    Arm(f"mined 100 by {reason}, true labels", 100, picked=reason)
    for reason in ("disagreement", "uncertainty", "novelty")
]
# As many as mining finds in the drawn flights: their nights are seven scenes to it.
FEWER = gain("random", 32, "true")
NOTHING_NEW = Arm("nothing new: 20 day frames", 20, domain="day")
ARMS = [  # the first ones cover every question
    gain("random", 100, "true"),
    gain("mined", 100, "true"),
    gain("random", 100, "teacher's"),
    NO_REPLAY,
    *(Arm(f"poisoned 100: {fault}", 100, fault=fault) for fault in ("swapped", "shifted")),
    NOTHING_NEW,
    gain("mined", 100, "teacher's"),
    gain("random", 100, "adapted teacher's"),
    gain("random", 300, "true"),
    gain("mined", 300, "true"),
    gain("random", 300, "teacher's"),
    gain("mined", 300, "teacher's"),
    SURE_FROM[0],
    BY_ONE_REASON[0],
    FEWER,
]
NOTHING_KEPT = [
    Arm(f"mined 100, {labels} labels, nothing kept", 100, "mined", labels, keep=0.0)
    for labels in ("true", "teacher's")
]
MORE_KEPT = [
    Arm("mined 100, true labels, 0.7 kept", 100, "mined", keep=0.7),
    Arm("mined 100, true labels, 0.85 kept", 100, "mined", keep=0.85),
    Arm("mined 100, true labels, nine base frames beside a new one", 100, "mined", replay=0.9),
]
REMEDIES = [*SURE_FROM[1:], *NOTHING_KEPT, *MORE_KEPT, *BY_ONE_REASON[1:]]  # tried once


def plan_of_rows() -> list[tuple[Arm, int]]:
    """Return arm and seed of every row, in order."""
    return [
        *((arm, seed) for seed in SEEDS for arm in ARMS),
        *((NOTHING_NEW, seed) for seed in range(10) if seed not in SEEDS),
        *((arm, SEEDS[0]) for arm in REMEDIES),
    ]


def render_flights(output: Path) -> Path:
    """Render flights by day and at night, with HIT-UAV's names and size; returns data.yaml."""
    if not (output / "data.yaml").is_file():
        first = 0
        for split, night, places, frames in SYNTHETIC:
            for place in track(range(first, first + places), f"Render {split}", "place"):
                scene = "night" if night else ""
                plan = FlightPlan(
                    seed=place, width=WIDTH, height=HEIGHT, fps=0.5, scene=scene, altitude_m=35.0
                )
                for i, frame in enumerate(islice(fly(plan), frames)):
                    name = f"{int(night)}_{place}_{1000 * place + i:06d}"
                    write_drawn(output, split, name, frame)
            first += places
        write_data_yaml(output)
    return output / "data.yaml"


def is_night(path: Path) -> bool:
    """HIT-UAV names a frame night(1)/day(0)_altitude_pitch_weather_number."""
    return path.name.startswith("1_")


def split_by_time(data: DataSet, output: Path) -> dict[str, Path]:
    """Write the lists of frames; returns a data.yaml for "base" and for "new"."""
    found = {}
    for name, wanted in (("base", False), ("new", True)):
        lists: dict[str, Path] = {}
        for split in ("train", "val"):
            lists[split] = (output / f"{name}-{split}.txt").resolve()
            paths = [p for p in image_paths(getattr(data, split)) if is_night(p) == wanted]
            write_text(lists[split], "".join(f"{p}\n" for p in paths))
        part = replace(data, train=lists["train"], val=lists["val"], test=None)
        found[name] = part.write_resolved(output / f"{name}.yaml")
    return found


def prepare(
    data: Path | None,
    weights: Path,
    output: Path,
    teacher_epochs: int = BASE_EPOCHS,
    amp: str = "",
) -> Shared:
    """Split the data and train deployed model and teacher; ``amp``: "" for float32, or "bf16"."""
    sets = split_by_time(load_data(data or render_flights(output / "drawn")), output)
    flying, teacher = (
        train_on_base(weights / f"{start}.pt", sets["base"], output / name, epochs, amp)
        for name, start, epochs in (
            ("flying", "yolov8n-coco", BASE_EPOCHS),
            ("teacher", "yolov8s-coco", teacher_epochs),
        )
    )
    return Shared(sets, flying, teacher, output)


def train_on_base(
    start: Path, base: Path, run: Path, epochs: int = BASE_EPOCHS, amp: str = ""
) -> Path:
    """Train the deployed model or the teacher on the base domain alone, as far as not done."""
    config = Config(
        data=str(base.resolve()),
        teacher="none",
        student=str(start.resolve()),
        epochs=epochs,
        imgsz=IMGSZ,
        batch=BATCH,
        val=False,
        overrides={**GENTLE, "lr0": 0.001, "nbs": BATCH, **({"amp": amp} if amp else {})},
    )
    distill(config, run, resume=(run / "config.yaml").is_file())
    return run / "best.pt"


def fly_nights(shared: Shared) -> tuple[list[Path], Path]:
    """Return the night frames for training in flight order, and a folder of them to mine."""
    frames = image_paths(load_data(shared.sets["new"]).train)
    frames.sort(key=lambda path: path.stem.split("_")[-1])
    flight = shared.output / "night"
    flight.mkdir(exist_ok=True)
    for path in frames:
        link = flight / path.name.split("_")[-1]
        if not link.exists():
            link.symlink_to(path)
    return frames, flight


def mined_frames(count: int, shared: Shared, picked: str = "mined") -> list[Path]:
    """Return the training frames that `training mine` selects with the deployed model."""
    frames, flight = fly_nights(shared)
    output = shared.output / f"{picked}-{count}"
    if not output.is_dir():
        shares = SHARES if picked == "mined" else {picked: 1.0}
        settings = Settings(str(shared.teacher), str(shared.flying), count, PER_SCENE, shares)
        mine([str(flight)], output, settings)
    with (output / "mined.csv").open(encoding="utf-8") as table:
        rows = [row for row in csv.DictReader(table) if row["split"] == "train"]
    # The stamp of an image is its number.
    return [frames[int(float(row["stamp_s"]))] for row in rows]


def random_frames(count: int, seed: int, shared: Shared) -> list[Path]:
    """Sample frames outside held-out blocks, which mining may choose from, too."""
    frames, flight = fly_nights(shared)
    pool = [
        frames[i]
        for segment in plan_flights([str(flight)], [], print)
        if not held_out(segment.start // segment.block)
        for i in range(segment.start, segment.stop)
    ]
    return sorted(random.Random(seed).sample(pool, count))


def adapted_teacher(shared: Shared) -> Path:
    """Retrain the teacher on its own labels of 300 mined frames, whatever the guard decides."""
    mined_frames(300, shared)
    plan = Plan(
        model=str(shared.teacher),
        mined=str(shared.output / "mined-300"),
        data=str(shared.sets["base"]),
        teacher=str(predictions_of("teacher's", [], shared)),
        epochs=EPOCHS,
        batch=BATCH,
        imgsz=IMGSZ,
    )
    retrain(plan, shared.output / "adapted-teacher", COMMAND)
    return shared.output / "adapted-teacher" / CANDIDATE


def predictions_of(labels: str, frames: list[Path], shared: Shared) -> Path:
    """Return the folder of predictions of the base set, and of some frames as mining has them."""
    teacher = adapted_teacher(shared) if labels.startswith("adapted") else shared.teacher
    folder = shared.output / f"predictions-{teacher.parent.name}"
    if not folder.is_dir():
        for model, domain in product((teacher, shared.flying), DOMAINS):
            score(model, domain, shared)
        predict(str(teacher), shared.sets["base"], folder)
    missing = [path for path in frames if not (folder / f"{path.stem}.txt").is_file()]
    if not missing:
        return folder
    models = open_models(str(teacher), str(shared.flying))
    for path in missing:
        image = read_image(path)
        lines = prediction_lines(models.label(image), image.shape[1], image.shape[0])
        write_text(folder / f"{path.stem}.txt", lines)
    return folder


def build_mined(arm: Arm, seed: int, shared: Shared, folder: Path) -> Path:
    """Write the arm's frames as `training mine` does; returns the folder of the predictions."""
    shutil.rmtree(folder, ignore_errors=True)
    data = load_data(shared.sets["new" if arm.domain == "night" else "base"])
    picked = {"val": image_paths(data.val)}
    if arm.domain == "day":  # judged by every other block of the base's validation frames
        picked["val"] = [path for i, path in enumerate(picked["val"]) if i // 20 % 2]
        picked["train"] = sorted(random.Random(seed).sample(image_paths(data.train), arm.frames))
    elif arm.picked == "random":
        picked["train"] = random_frames(arm.frames, seed, shared)
    else:
        picked["train"] = mined_frames(arm.frames, shared, arm.picked)
    asked = [*picked["train"], *picked["val"]] if arm.labels != "true" else []
    predictions = predictions_of(arm.labels, asked, shared)
    for split, paths in picked.items():
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for path in paths:
            name = f"new-{path.stem}"
            (folder / "images" / split / f"{name}{path.suffix}").symlink_to(path)
            if arm.labels == "true":
                rows = [_spoil(arm, row) for row in _rows(label_path(path))]
                found = [[*row, 0.95] for row in rows]
            else:
                found = _rows(predictions / f"{path.stem}.txt")
                found = [
                    [*row[:5], float(rescale(np.array(row[5]), arm.pseudo_threshold))]
                    for row in found
                ]
                rows = [row[:5] for row in found if row[5] > IGNORE_BAND[1]]
            write_text(folder / "labels" / split / f"{name}.txt", _lines(rows))
            write_text(folder / "predictions" / f"{name}.txt", _lines(found))
    write_text(folder / "predictions" / "classes.txt", "".join(f"{n}\n" for n in data.names))
    content = {"train": "images/train", "val": "images/val", "names": dict(enumerate(data.names))}
    write_text(folder / "data.yaml", yaml.safe_dump(content))
    if arm.labels == "true" and not arm.fault:
        names = [f"new-{path.stem}\n" for paths in picked.values() for path in paths]
        write_text(folder / "corrected.txt", "".join(names))
    return predictions


def _rows(path: Path) -> list[list[float]]:
    if not path.is_file():
        return []
    return [[float(x) for x in line.split()] for line in path.read_text().splitlines()]


def _spoil(arm: Arm, row: list[float]) -> list[float]:
    """A label with the arm's fault."""
    class_id, x, y, w, h = row
    if arm.fault == "shifted":
        x, y = (min(v + SHIFT_PX / side, 1 - half / 2)
                for v, side, half in ((x, WIDTH, w), (y, HEIGHT, h)))  # fmt: skip
    if arm.fault == "swapped":  # people are cars, and cars people
        class_id = {0.0: 1.0, 1.0: 0.0}.get(class_id, class_id)
    return [class_id, x, y, w, h]


def _lines(rows: list[list[float]]) -> str:
    return "".join(f"{int(row[0])} {' '.join(f'{v:.6f}' for v in row[1:])}\n" for row in rows)


def row_folder(arm: Arm, seed: int, output: Path) -> Path:
    """Return the folder of a row; row.json marks it as finished."""
    name = "".join(c if c.isalnum() else "-" for c in arm.name)
    return output / "rows" / f"{name}-seed{seed}"


def run_row(arm: Arm, seed: int, shared: Shared) -> dict:
    """Retrain once and measure with true labels that nothing else uses."""
    folder = row_folder(arm, seed, shared.output)
    predictions = build_mined(arm, seed, shared, folder / "mined")
    plan = Plan(
        model=str(shared.flying),
        mined=str(folder / "mined"),
        data=str(shared.sets["base"]),
        teacher=str(predictions),
        replay=arm.replay,
        keep=arm.keep,
        epochs=EPOCHS,
        batch=BATCH,
        imgsz=IMGSZ,
        seed=seed,
    )
    before = sum(os.times()[:4])
    found = retrain(plan, folder / "run", COMMAND)
    labels = [len(_rows(path)) for path in (folder / "mined" / "labels" / "train").iterdir()]
    row = {"arm": arm.name, "seed": seed, "frames": len(labels), "labels": sum(labels)}
    row["accepted"] = found["accepted"]
    parts = {(r["domain"], r["part"]): r for r in found["rows"]}
    for domain in DOMAINS:
        whole = parts[domain, "all"]
        row |= {f"guard_{domain}_{k}": whole[k] for k in ("before", "after", "low", "high")}
    row["reasons"] = "; ".join(
        f"{r['domain']} {r['part']}: {r['verdict']}"
        for r in found["rows"]
        if r["verdict"] in ("worse", "not shown", "not enough flights")
    )
    row["new_before"] = score(shared.flying, "new", shared)
    row["new_after"] = score(folder / "run" / CANDIDATE, "new", shared)
    row["cpu_seconds"] = round(sum(os.times()[:4]) - before)
    write_text(folder / "row.json", json.dumps(row))
    return row


def score_file(model: Path, domain: str) -> Path:
    """Return the file in which `score` keeps its result."""
    return model.with_name(f"{model.stem}-{domain}.json")


def score(model: Path, domain: str, shared: Shared) -> float:
    """Return mAP50-95 on the test frames with true labels, measured once per model."""
    file = score_file(model, domain)
    if not file.is_file():
        write_text(file, json.dumps(evaluate(str(model), shared.sets[domain])))
    return json.loads(file.read_text(encoding="utf-8"))["map50_95"]


def finished(output: Path) -> list[dict]:
    """Return the finished rows in the order of the plan."""
    files = [row_folder(arm, seed, output) / "row.json" for arm, seed in plan_of_rows()]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]


def with_cost(rows: list[dict], cost: LabelCost) -> list[dict]:
    """Return the rows with minutes of labelling, and gain in points per frame, box and minute.

    Rows with labels of a teacher cost a person nothing: their fields are empty.
    """
    found = []
    for row in rows:
        own = {"gain_per_frame": "", "gain_per_box": "", "minutes": "", "gain_per_minute": ""}
        if "true labels" in row["arm"]:
            minutes = cost.minutes(row["frames"], row["labels"])
            own = {
                "gain_per_frame": f"{_gain(row) / row['frames']:.6f}",
                "gain_per_box": f"{_gain(row) / row['labels']:.6f}",
                "minutes": f"{minutes:.1f}",
                "gain_per_minute": f"{_gain(row) / minutes:.6f}",
            }
        found.append(row | own)
    return found


def _gain(row: dict) -> float:
    return 100 * (row["new_after"] - row["new_before"])


def read_csv(path: Path) -> list[dict]:
    """Return published rows; numbers as such."""
    with path.open(encoding="utf-8", newline="") as file:
        rows: list[dict] = list(csv.DictReader(file))
    for row in rows:
        for key in ("seed", "frames", "labels"):
            row[key] = int(row[key])
        for key in ("new_before", "new_after", *GUARD_BASE):
            row[key] = float(row[key])
        row["accepted"] = row["accepted"] == "True"
    return rows


def models_table(output: Path) -> str:
    """Return the scores of the initial models as Markdown."""
    lines = [markdown_head(["model", "new", "base (all classes)"])]
    for name in ("flying/best", "teacher/best", f"adapted-teacher/{Path(CANDIDATE).stem}"):
        files = [score_file(output / name, domain) for domain in DOMAINS]
        if all(file.is_file() for file in files):
            found = [json.loads(file.read_text(encoding="utf-8"))["map50_95"] for file in files]
            lines.append(markdown_row([name.split("/")[0], *map(format_score, found)]))
    return "\n".join(lines)


def arms_table(rows: list[dict]) -> str:
    """Return means over the seeds as Markdown; scores in points."""
    columns = ["arm", "seeds", "labels", "accepted"]
    for domain in DOMAINS:
        columns += [f"{domain} before → after", "gain [per seed]"]
    lines = [markdown_head(columns)]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        cells = [arm, str(len(own)), f"{np.mean([row['labels'] for row in own]):.0f}"]
        cells.append(f"{sum(row['accepted'] for row in own)} of {len(own)}")
        for before, after in (("new_before", "new_after"), GUARD_BASE):
            means = [format_score(np.mean([row[key] for row in own])) for key in (before, after)]
            gains = [100 * (row[after] - row[before]) for row in own]
            each = ", ".join(f"{x:+.1f}" for x in gains)
            cells += [" → ".join(means), f"{np.mean(gains):+.1f} [{each}]"]
        lines.append(markdown_row(cells))
    return "\n".join(lines)


def figures_table(rows: list[dict]) -> str:
    """Return the ratios of the benchmark's summary, as Markdown."""
    lines = [markdown_head(["figure", "seeds", "value"])]
    for labels in ("true", "teacher's"):
        for n in (100, 300):
            name = f"gain, mined ÷ random {n}, {labels} labels"
            lines.append(_ratio(rows, name, *(gain(p, n, labels) for p in ("mined", "random"))))
    for picked, n, labels in (
        *((p, n, "teacher's") for p in ("random", "mined") for n in (100, 300)),
        ("random", 100, "adapted teacher's"),
    ):
        name = f"gain, {labels} ÷ true labels, {picked} {n}"
        lines.append(_ratio(rows, name, gain(picked, n, labels), gain(picked, n, "true")))
    mined, random = gain("mined", 100, "true"), gain("random", 100, "true")
    lines += [_ratio(rows, f"gain, {arm.name} ÷ true labels", arm, mined) for arm in SURE_FROM]
    lines += [
        _ratio(rows, f"gain, {NOTHING_KEPT[1].name} ÷ true labels", *reversed(NOTHING_KEPT)),
        *(_ratio(rows, f"gain, {arm.name} ÷ random 100", arm, random) for arm in BY_ONE_REASON),
        _ratio(rows, f"gain, {mined.name} ÷ {FEWER.name}", mined, FEWER),
    ]
    with_replay = {arm.name for arm in ARMS if not arm.fault and arm.replay} - {NOTHING_NEW.name}
    for name, arms in (("with", with_replay), ("without", {NO_REPLAY.name})):
        losses = [100 * (r[GUARD_BASE[1]] - r[GUARD_BASE[0]]) for r in rows if r["arm"] in arms]
        if losses:
            value = f"{np.mean(losses):+.1f} points, at worst {min(losses):+.1f}"
            lines.append(markdown_row([f"base, {name} replay", f"{len(losses)} rows", value]))
    return "\n".join(lines)


def _ratio(rows: list[dict], name: str, above: Arm, below: Arm) -> str:
    """Return a row with the ratio of mean gains over the seeds that both arms have."""
    gains = [{r["seed"]: _gain(r) for r in rows if r["arm"] == arm.name} for arm in (above, below)]
    seeds = sorted(gains[0].keys() & gains[1].keys())
    means = [np.mean([own[seed] for seed in seeds]) if seeds else 0.0 for own in gains]
    value = "-"
    if seeds and means[1] > 0:
        value = f"{means[0]:+.1f} ÷ {means[1]:+.1f} = {means[0] / means[1]:.2f}"
    return markdown_row([name, len(seeds), value])


def cost_table(rows: list[dict], cost: LabelCost) -> str:
    """Return mined ÷ random frames by what a person spends, paired by seed, as Markdown.

    "As many boxes" is the gain of random frames at the boxes of the mined ones, between two
    numbers of random frames by the logarithm of their boxes.
    """
    drawn = replace(cost, box_s=DRAWN_BOX_S)
    costs = {
        "frame": lambda r: r["frames"],
        "box": lambda r: r["labels"],
        f"minute ({cost.box_s:g} s per box)": lambda r: cost.minutes(r["frames"], r["labels"]),
        f"minute ({DRAWN_BOX_S:g} s per box)": lambda r: drawn.minutes(r["frames"], r["labels"]),
    }
    lines = [markdown_head(["mined ÷ random, true labels", "seeds", *costs, "as many boxes"])]
    pairs = [(gain("mined", n, "true"), gain("random", n, "true")) for n in (100, 300)]
    pairs += [(arm, gain("random", 100, "true")) for arm in BY_ONE_REASON]
    for pair in pairs:
        above, below = ({r["seed"]: r for r in rows if r["arm"] == arm.name} for arm in pair)
        seeds = sorted(above.keys() & below.keys())
        if not seeds:
            continue
        cells = []
        for of in costs.values():
            rates = [[_gain(own[s]) / of(own[s]) for s in seeds] for own in (above, below)]
            cells.append(format_ratio(rates[0], rates[1]))
        gains = [_gain(above[s]) for s in seeds]
        found = [_random_at(rows, s, above[s]["labels"]) for s in seeds]
        others = [other for other in found if other is not None]
        cells.append(format_ratio(gains, others) if len(others) == len(gains) else "-")
        lines.append(
            markdown_row([pair[0].name.removesuffix(", true labels"), len(seeds), *cells])
        )
    return "\n".join(lines)


def _random_at(rows: list[dict], seed: int, boxes: int) -> float | None:
    """Return the gain of random frames with so many boxes; None outside what was measured."""
    names = {FEWER.name, *(gain("random", n, "true").name for n in (100, 300))}
    own = sorted((r["labels"], _gain(r)) for r in rows if r["seed"] == seed and r["arm"] in names)
    if len(own) < 2 or not own[0][0] <= boxes <= own[-1][0]:
        return None
    return float(np.interp(np.log(boxes), np.log([n for n, _ in own]), [g for _, g in own]))


def rows_parser(description: str) -> argparse.ArgumentParser:
    """Return the options of a benchmark that trains on labelled night frames, row by row."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--data", type=Path, help="HIT-UAV's data.yaml")
    add("--weights", type=Path, help="has yolov8n-coco.pt and yolov8s-coco.pt")
    add("--output", type=Path)
    add("--csv", type=Path, help="print the tables of these rows instead")
    add("--rows", type=int, default=10**6, help="stop after so many (default: all)")
    add_options(parser)
    return parser


def main() -> None:
    """Run the missing rows and print the tables; without --data on synthetic flights."""
    parser = rows_parser(__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, help="rows of these alone (default: all)")
    a = parser.parse_args()
    cost = read_options(a)
    if a.csv:
        rows = read_csv(a.csv)
        write_text(a.csv, as_csv(with_cost(rows, cost)))
        print_tables(rows, cost)
        return
    if not a.weights or not a.output:
        parser.error("expected --weights and --output, or --csv")
    output = a.output.resolve()
    done = {(row["arm"], row["seed"]) for row in finished(output)}
    todo = [
        (arm, seed)
        for arm, seed in plan_of_rows()
        if (arm.name, seed) not in done and (a.seeds is None or seed in a.seeds)
    ][: a.rows]
    if todo:
        shared = prepare(a.data, a.weights, output)
    for number, (arm, seed) in enumerate(todo, start=1):
        print(f"[{number}/{len(todo)}] {arm.name}, seed {seed}", flush=True)
        print(run_row(arm, seed, shared), flush=True)
        write_text(output / "rows.csv", as_csv(with_cost(finished(output), cost)))
    print(f"\n{models_table(output)}")
    print_tables(finished(output), cost)


def print_tables(rows: list[dict], cost: LabelCost) -> None:
    """Print the tables of the rows."""
    print("", arms_table(rows), figures_table(rows), cost_table(rows, cost), sep="\n\n")


if __name__ == "__main__":
    main()
