# SPDX-License-Identifier: AGPL-3.0-or-later
"""Gain of frame selections at an equal number of labelled boxes.

    python -m benchmarks.selection --data HIT-UAV/data.yaml --weights WEIGHTS --output OUT

Domains and deployed model are those of `benchmarks.retraining`: deployed model and teacher know
the day alone, the frames to choose from are every third one of the night flights. Each seed draws
two thirds of their stretches as its pool, so that seeds differ in flights, too. A selection orders
the pool, and frames get their true labels in this order until the budget of boxes is spent. All
trainings have equally many steps, half of whose images are new frames and half base frames,
without a teacher and without weight interpolation.

The primary comparison is PRIMARY with random frames. Seed 0 chose between selections: no figure is
of it. Finished rows stay in the output folder, and the same command continues.

    python -m benchmarks.selection --csv benchmarks/selection.csv

prints the table of published rows.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import retraining
from benchmarks.label_cost import LabelCost, format_ratio, read_options
from benchmarks.rig import markdown_head, markdown_row
from drone_kd.files import write_text
from drone_kd.parsing import read_json
from drone_kd_training.data.dataset import image_paths, label_path, load_data, write_list
from drone_kd_training.distillation.config import NO_TEACHER, Config
from drone_kd_training.distillation.distill import distill
from drone_kd_training.evaluation.evaluate import predict_split
from drone_kd_training.export.calibration import spread
from drone_kd_training.mining import stages
from drone_kd_training.mining.flights import Segment, plan
from drone_kd_training.mining.reasons import ScoredFrame, measure
from drone_kd_training.mining.selection import add_scenes, pick
from drone_kd_training.mining.student_and_teacher import Models, open_models
from drone_kd_training.retraining.bootstrap import Matches
from drone_kd_training.retraining.retrain import GENTLE
from drone_kd_training.retraining.stretches import frame_blocks
from drone_kd_training.tables import as_csv

BATCH, SLOTS = 16, 160  # new frames in a training, and as many base frames
TEACHER_EPOCHS = 2
PER_SCENE = 5  # as `drone-kd mine` has it
MIN_OBJECTS = 20  # of a class that counts in a mean
EVERY = 3  # frame of the night flights
BOXES, SEEDS = 400, range(1, 5)
PRIMARY = "balanced"
COST = LabelCost()  # by which `balanced` expects minutes
FLIGHTS = "abcd"

Row = dict[str, Any]


def flight_of(path: Path) -> str:
    """Return the flight of a night frame of HIT-UAV's validation split, by its number."""
    number = int(path.stem.split("_")[-1])
    return FLIGHTS[sum(number >= first for first in (2700, 4500, 7500))]


def score_frames(shared: retraining.Shared) -> list[Row]:
    """Return the frames to choose from with mining's measures, and what was predicted in them.

    Beside the fields of `mining.selection.pick`: "path", the true "classes", and "predicted" boxes
    of the deployed model by class.
    """
    nights = retraining.fly_nights(shared)[0][::EVERY]
    flight = shared.output / "sparse-night"
    flight.mkdir(exist_ok=True)
    for number, path in enumerate(nights):
        link = flight / f"{number:06d}.jpg"
        if not link.is_symlink():
            link.symlink_to(path)
    models = None
    rows: list[Row] = []
    leaders: list[int] = []
    for segment in plan([str(flight)], [], print):
        file = shared.output / "scores" / f"{segment.key}.json"
        if not file.is_file():
            models = models or open_models(str(shared.teacher), str(shared.flying))
            file.parent.mkdir(exist_ok=True)
            write_text(file, json.dumps(_score(segment, models)))
        for row in read_json(file, 10**8):
            path = nights[row["number"]]
            labels = label_path(path)
            lines = labels.read_text(encoding="utf-8").splitlines() if labels.is_file() else []
            row |= {"path": path, "classes": [int(line.split()[0]) for line in lines]}
            rows.append({**row, "held_out": False, "flight": "night", "time": 0.0})
            leaders.append(_leader(rows, leaders))
    add_scenes(rows, leaders)
    return rows


def _score(segment: Segment, models: Models) -> list[Row]:
    scored: list[ScoredFrame] = []
    rows: list[Row] = []
    for batch in stages.read_features(segment, Counter()):
        for frame in stages.score(batch, models):
            scored.append(frame)
            number = segment.start + frame.number
            predicted = np.bincount(frame.student.class_ids, minlength=len(models.names))
            rows.append(
                {
                    "name": f"{number:06d}",
                    "number": number,
                    "block": frame.block,
                    "embedding": frame.embedding.tolist(),
                    "predicted": predicted.tolist(),
                }
            )
    return [row | measure(scored, i, row["name"]) for i, row in enumerate(rows)]


def _leader(rows: list[Row], leaders: list[int]) -> int:
    """Return the first frame of the scene of the last one, as `stages.summarise` has it."""
    if not leaders or rows[-1]["block"] != rows[leaders[-1]]["block"]:
        return len(rows) - 1
    a, b = (np.array(row["embedding"]) for row in (rows[-1], rows[leaders[-1]]))
    return leaders[-1] if np.linalg.norm(a - b) <= stages.SCENE_DISTANCE else len(rows) - 1


def draw_pool(rows: list[Row], seed: int) -> list[Row]:
    """Return the frames of a random two thirds of the stretches."""
    of_frame = frame_blocks([row["path"] for row in rows], np.inf).of_frame
    stretches = range(of_frame.max() + 1)
    kept = random.Random(seed).sample(stretches, 2 * len(stretches) // 3)
    return [row for row, block in zip(rows, of_frame, strict=True) if block in kept]


def random_frames(pool: list[Row], seed: int) -> list[Row]:
    """Select frames at random."""
    ordered = list(pool)
    random.Random(1000 + seed).shuffle(ordered)
    return label(ordered)


def mined(pool: list[Row], seed: int) -> list[Row]:
    """Select as many frames as the budget allows by the reasons of `drone-kd mine`."""
    found: list[Row] = []
    for frames in range(4, len(pool)):
        picked = [row for row in pick(pool, frames, PER_SCENE) if row["split"] == "train"]
        boxes = sum(len(row["classes"]) for row in picked)
        if len(picked) < len(found) or boxes > 1.05 * BOXES:
            break
        found = picked
    return found


def balanced(pool: list[Row], seed: int) -> list[Row]:
    """Select frames by what they add to scenes and classes, per expected minute of labelling.

    The value of a set of frames is a sum over classes of the root of a sum over scenes of the root
    of the predicted boxes: more of the same class and scene is worth less. The greedy order is
    that of a monotone submodular function by gain per cost (Wei, Iyer and Bilmes, "Submodularity
    in data subset selection and active learning", ICML 2015).
    """
    scenes = {scene: i for i, scene in enumerate(dict.fromkeys(row["scene"] for row in pool))}
    place = np.array([scenes[row["scene"]] for row in pool])
    worth = np.array([row["predicted"] for row in pool], float)
    minutes = np.array([COST.minutes(1, sum(row["predicted"])) for row in pool])
    sums = np.zeros((len(scenes), worth.shape[1]))
    left = np.ones(len(pool), bool)
    ordered = []
    for _ in pool:
        total = np.sqrt(sums).sum(axis=0)
        after = total - np.sqrt(sums[place]) + np.sqrt(sums[place] + worth)
        gain = (np.sqrt(after) - np.sqrt(total)).sum(axis=1) / minutes
        best = int(np.where(left, gain, -np.inf).argmax())
        left[best] = False
        sums[place[best]] += worth[best]
        ordered.append(pool[best])
    return label(ordered)


SELECTIONS: dict[str, Callable[[list[Row], int], list[Row]]] = {
    "random": random_frames,
    PRIMARY: balanced,
    "mined": mined,
}


def label(ordered: Iterable[Row], boxes: int = BOXES) -> list[Row]:
    """Return the frames that are labelled in this order, with about so many boxes."""
    taken: list[Row] = []
    spent = 0
    for row in ordered:
        if spent + len(row["classes"]) / 2 > boxes:
            break
        taken.append(row)
        spent += len(row["classes"])
    return taken


def train(
    shared: retraining.Shared, picked: list[Row], seed: int, folder: Path, amp: str = ""
) -> Path:
    """Train the deployed model on new and base frames with labels; return the checkpoint."""
    base = load_data(shared.sets["base"])
    replayed = spread(image_paths(base.train), SLOTS)
    new = [row["path"] for row in picked]
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    listed = []
    for slot, pair in enumerate(zip(_slots(new), _slots(replayed), strict=True)):
        for kind, source in zip(("new", "base"), pair, strict=True):
            # Links, because a frame may be there several times.
            link = folder / "images" / f"{kind}{slot:04d}-{source.name}"
            link.symlink_to(source)
            if label_path(source).is_file():
                (folder / "labels" / f"{link.stem}.txt").symlink_to(label_path(source))
            listed.append(link)
    write_list(folder / "train.txt", listed)
    write_list(folder / "val.txt", replayed[:1])  # which the run evaluates once
    split = replace(base, train=(folder / "train.txt").resolve(),
                    val=(folder / "val.txt").resolve(), test=None)  # fmt: skip
    config = Config(
        data=str(split.write_resolved(folder / "data.yaml")),
        teacher=NO_TEACHER,
        student=str(shared.flying),
        epochs=1,
        imgsz=retraining.IMGSZ,
        batch=BATCH,
        seed=seed,
        val=False,
        overrides={
            **GENTLE,
            "warmup_epochs": 0.3,
            "nbs": BATCH,
            "workers": 0,
            **({"amp": amp} if amp else {}),
        },
    )
    distill(config, folder / "run")
    return (folder / "run" / "best.pt").replace(folder / "best.pt")


def _slots(paths: list[Path]) -> list[Path]:
    return list(islice(cycle(paths), SLOTS))


def score(model: Path, new: Path) -> dict[str, float]:
    """Return mAP50-95 in points on all night flights for evaluation, and on each of them."""
    file = model.with_name("flights.json")
    if not file.is_file():
        found = predict_split(str(model), new)
        matches = Matches(found.images, found.truth, found.predictions, found.known)
        flights = [flight_of(found.paths[image["id"]]) for image in found.images]
        scores = {}
        for part in ("all", *FLIGHTS):
            used = np.array([[part in ("all", flight) for flight in flights]], np.int64)
            objects = (matches.frame_objects("all") * used).sum(axis=1)
            precision = matches.precision("all", used)[:, 0]
            scores[part] = 100 * float(precision[objects >= MIN_OBJECTS].mean())
        write_text(file, json.dumps(scores))
    return read_json(file)


def run_row(shared: retraining.Shared, rows: list[Row], key: tuple[str, int], amp: str) -> Row:
    """Select, train and measure; ``key``: selection and seed."""
    name, seed = key
    before = sum(os.times()[:4])
    picked = SELECTIONS[name](draw_pool(rows, seed), seed)
    folder = row_folder(shared.output, key)
    shutil.rmtree(folder, ignore_errors=True)
    start = score(shared.flying, shared.sets["new"])
    end = score(train(shared, picked, seed, folder, amp), shared.sets["new"])
    classes = Counter(class_id for row in picked for class_id in row["classes"])
    found: Row = {"selection": name, "seed": seed, "frames": len(picked)}
    found |= {"boxes": classes.total(), "scenes": len({row["scene"] for row in picked})}
    names = load_data(shared.sets["new"]).names
    found |= {f"boxes_{kind}": classes[i] for i, kind in enumerate(names)}
    found |= {f"gain_{part}": round(end[part] - start[part], 4) for part in start}
    found["cpu_seconds"] = round(sum(os.times()[:4]) - before)
    write_text(folder / "row.json", json.dumps(found))
    return found


def row_folder(output: Path, key: tuple[str, int]) -> Path:
    """Return the folder of a row; row.json marks it as finished."""
    return output / "selections" / f"{key[0].replace(' ', '-')}-seed{key[1]}"


def plan_of_rows() -> list[tuple[str, int]]:
    """Return selection and seed of every row, in order."""
    return [(name, seed) for seed in SEEDS for name in SELECTIONS]


def finished(output: Path) -> list[Row]:
    """Return the finished rows in the order of the plan."""
    files = [row_folder(output, key) / "row.json" for key in plan_of_rows()]
    return [read_json(file) for file in files if file.is_file()]


def read_csv(path: Path) -> list[Row]:
    """Return published rows; numbers as such."""
    with path.open(encoding="utf-8", newline="") as file:
        rows: list[Row] = list(csv.DictReader(file))
    for row in rows:
        for key in row.keys() - {"selection"}:
            row[key] = float(row[key]) if key.startswith("gain") else int(row[key])
    return rows


def table(rows: list[Row], cost: LabelCost) -> str:
    """Return gains of the selections relative to random frames, paired by seed, as Markdown."""
    head = ["selection", "seeds", "frames", "boxes", "minutes", "gain [per seed]"]
    lines = [markdown_head([*head, "÷ random [95 %]", "test flights with more gain than random"])]
    paired = {row["seed"]: row for row in rows if row["selection"] == "random"}
    for name in dict.fromkeys(row["selection"] for row in rows):
        own = [row for row in rows if row["selection"] == name and row["seed"] in paired]
        others = [paired[row["seed"]] for row in own]
        if not own:
            continue
        frames, boxes = (float(np.mean([row[key] for row in own])) for key in ("frames", "boxes"))
        gains = [row["gain_all"] for row in own]
        cells = [name, len(own), f"{frames:.0f}", f"{boxes:.0f}"]
        cells += [f"{cost.minutes(frames, boxes):.0f}", f"{np.mean(gains):+.1f} [{_list(gains)}]"]
        if name != "random":
            better = [
                np.mean(
                    [a[f"gain_{f}"] - b[f"gain_{f}"] for a, b in zip(own, others, strict=True)]
                )
                > 0
                for f in FLIGHTS
            ]
            cells += [format_ratio(gains, [row["gain_all"] for row in others])]
            cells += [f"{sum(better)} of {len(better)}"]
        lines.append(markdown_row([*cells, *[""] * (8 - len(cells))]))
    return "\n".join(lines)


def _list(gains: list[float]) -> str:
    return ", ".join(f"{gain:+.1f}" for gain in gains)


def main() -> None:
    """Run the missing rows and print the table."""
    parser = retraining.rows_parser(__doc__.splitlines()[0])
    parser.add_argument("--amp", default="", help="bf16: train in bfloat16 (default: float32)")
    a = parser.parse_args()
    if a.csv:
        print(table(read_csv(a.csv), read_options(a)))
        return
    if not (a.data and a.weights and a.output):
        parser.error("expected --data, --weights and --output, or --csv")
    output = a.output.resolve()
    shared = retraining.prepare(a.data, a.weights, output, TEACHER_EPOCHS, a.amp)
    done = {(row["selection"], row["seed"]) for row in finished(output)}
    todo = [key for key in plan_of_rows() if key not in done][: a.rows]
    candidates = score_frames(shared) if todo else []
    for number, key in enumerate(todo, start=1):
        print(f"[{number}/{len(todo)}] {key}", flush=True)
        print(run_row(shared, candidates, key, a.amp), flush=True)
        write_text(output / "selection.csv", as_csv(finished(output)))
    print(f"\n{table(finished(output), read_options(a))}")


if __name__ == "__main__":
    main()
