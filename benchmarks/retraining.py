# SPDX-License-Identifier: AGPL-3.0-or-later
"""What retraining brings, what the base forgets, and what the guard lets pass, on HIT-UAV.

    python -m benchmarks.retraining --data HIT-UAV/data.yaml --weights WEIGHTS --output OUT

Base: daytime flights; new: night flights (the data's file names say which). The model that flies
is YOLOv8n, trained on the base alone. Frames to learn from are of night flights of the training
split, those to judge by of the validation split, whose flights are others. Every finished row is
in rows.csv in the output folder: the same command goes on where it was, and --rows N stops after
N further rows.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from training.compare import as_csv
from training.config import Config
from training.data import DataSet, image_paths, label_path, load_data, write_text
from training.distill import distill
from training.evaluate import evaluate
from training.predict import predict
from training.retrain import GENTLE, Plan, retrain
from training.softlabels import IGNORE_BAND

IMGSZ, BATCH, EPOCHS = 320, 16, 2
SHIFT_PX = 20
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Arm:
    """One way to retrain.

    ``frames``: how many new ones; ``labels``: "true", or "self", those of the flying model at
    twice its input; ``fault``: "", "shifted" or "swapped", in the frames to learn from and in
    those to judge by; ``replay``: see `training.retrain.Plan`; ``domain``: "night", or "day":
    nothing new.
    """

    name: str
    frames: int
    labels: str = "true"
    fault: str = ""
    replay: float = 0.75
    domain: str = "night"
    epochs: int = EPOCHS


POISONED = [Arm(f"poisoned: {fault}", 100, fault=fault) for fault in ("shifted", "swapped")]
NOTHING_NEW = Arm("nothing new", 20, domain="day")
GAINS = [
    arm
    for n in (100, 300)
    for arm in (
        Arm(f"random {n}, true labels", n),
        Arm(f"random {n}, self-labelled", n, labels="self"),
        Arm(f"random {n}, true labels, no replay", n, replay=0.0),
    )
]


def plan_of_rows() -> list[tuple[Arm, int]]:
    """Arm and seed of every row, in the order in which they are run."""
    first = [(arm, 0) for arm in (POISONED[0], NOTHING_NEW, POISONED[1], GAINS[0], GAINS[2])]
    rest = [(NOTHING_NEW, seed) for seed in range(10)]
    rest += [(arm, seed) for seed in SEEDS for arm in (*GAINS, *POISONED)]
    return list(dict.fromkeys(first + rest))


def is_night(path: Path) -> bool:
    """HIT-UAV names a frame night(1)/day(0)_altitude_pitch_weather_number."""
    return path.name.startswith("1_")


def split_by_time(data: DataSet, output: Path) -> dict[str, Path]:
    """Write the lists of frames; returns a data.yaml for "base" and for "new"."""
    found = {}
    for name, wanted in (("base", False), ("new", True)):
        lists = {}
        for split in ("train", "val"):
            lists[split] = (output / f"{name}-{split}.txt").resolve()
            paths = [p for p in image_paths(getattr(data, split)) if is_night(p) == wanted]
            write_text(lists[split], "".join(f"{p}\n" for p in paths))
        found[name] = replace(data, **lists, test=None).write_resolved(output / f"{name}.yaml")
    return found


def fly_model(weights: Path, base: Path, output: Path) -> Path:
    """The model that flies, trained on the base."""
    run = output / "flying"
    config = Config(
        data=str(base.resolve()),
        teacher="none",
        student=str((weights / "yolov8n-coco.pt").resolve()),
        epochs=3,
        imgsz=IMGSZ,
        batch=BATCH,
        val=False,
        overrides={**GENTLE, "lr0": 0.001, "nbs": BATCH},
    )
    distill(config, run, resume=(run / "config.yaml").is_file())
    return run / "best.pt"


def build_mined(arm: Arm, seed: int, sets: dict[str, Path], answers: Path, folder: Path) -> Path:
    """A folder as `training mine` writes it, of frames picked at random."""
    shutil.rmtree(folder, ignore_errors=True)
    data = load_data(sets["new" if arm.domain == "night" else "base"])
    train, val = image_paths(data.train), image_paths(data.val)
    rng = random.Random(seed)
    if arm.domain == "day":  # judged by every other stretch of the base's own validation frames
        val = [path for i, path in enumerate(val) if i // 20 % 2]
    picked = {"train": sorted(rng.sample(train, arm.frames)), "val": val}
    for split, paths in picked.items():
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for path in paths:
            name = f"new-{path.stem}"
            (folder / "images" / split / f"{name}{path.suffix}").symlink_to(path)
            rows, found = _labels(arm, path, answers)
            rows = [_spoil(arm, row, len(data.names)) for row in rows]
            write_text(folder / "labels" / split / f"{name}.txt", _lines(rows))
            if arm.labels == "true":
                found = [[*row, 0.95] for row in rows]
            write_text(folder / "answers" / f"{name}.txt", _lines(found))
    write_text(folder / "answers" / "classes.txt", "".join(f"{n}\n" for n in data.names))
    content = {"train": "images/train", "val": "images/val", "names": dict(enumerate(data.names))}
    write_text(folder / "data.yaml", yaml.safe_dump(content))
    if arm.labels == "true" and not arm.fault:
        names = [f"new-{path.stem}\n" for paths in picked.values() for path in paths]
        write_text(folder / "corrected.txt", "".join(names))
    return folder


def _labels(arm: Arm, path: Path, answers: Path) -> tuple[list, list]:
    """Labels, and the teacher's answers: rows of numbers."""
    if arm.labels == "true":
        return _rows(label_path(path)), []
    found = _rows(answers / f"{path.stem}.txt")
    return [row[:5] for row in found if row[5] > IGNORE_BAND[1]], found


def _rows(path: Path) -> list[list[float]]:
    if not path.is_file():
        return []
    return [[float(x) for x in line.split()] for line in path.read_text().splitlines()]


def _spoil(arm: Arm, row: list[float], classes: int) -> list[float]:
    """A label with the arm's fault; HIT-UAV's frames are 640 x 512 px."""
    class_id, x, y, w, h = row
    if arm.fault == "shifted":
        x, y = (min(v + SHIFT_PX / side, 1 - half / 2)
                for v, side, half in ((x, 640, w), (y, 512, h)))  # fmt: skip
    if arm.fault == "swapped":  # people are cars, and cars people
        class_id = {0: 1, 1: 0}.get(class_id, class_id)
    return [class_id, x, y, w, h]


def _lines(rows: list[list[float]]) -> str:
    return "".join(f"{int(row[0])} {' '.join(f'{v:.6f}' for v in row[1:])}\n" for row in rows)


def run_row(
    arm: Arm, seed: int, sets: dict[str, Path], flying: Path, answers: Path, output: Path
) -> dict:
    """Retrain once, and measure with true labels, which nothing else has seen."""
    name = "".join(c if c.isalnum() else "-" for c in arm.name)
    folder = output / "rows" / f"{name}-seed{seed}"
    mined = build_mined(arm, seed, sets, answers, folder / "mined")
    plan = Plan(
        model=str(flying),
        mined=str(mined),
        data=str(sets["base"]),
        teacher=str(answers if arm.labels == "self" else flying),
        replay=arm.replay,
        epochs=arm.epochs,
        batch=BATCH,
        imgsz=IMGSZ,
        seed=seed,
    )
    found = retrain(plan, folder / "run", "python -m benchmarks.retraining")
    row = {"arm": arm.name, "seed": seed, "replay": arm.replay, "accepted": found["accepted"]}
    parts = {(r["domain"], r["part"]): r for r in found["rows"]}
    for domain in ("new", "base"):
        whole = parts[domain, "all"]
        row |= {f"guard_{domain}_{k}": whole[k] for k in ("before", "after", "low", "high")}
    row["reasons"] = "; ".join(
        f"{r['domain']} {r['part']}: {r['verdict']}"
        for r in found["rows"]
        if r["verdict"] in ("worse", "not shown")
    )
    night = arm.domain == "night"
    row["true_new_before"] = _before(flying, sets, output) if night else ""
    row["true_new_after"] = evaluate(found["candidate"], sets["new"])["map50_95"] if night else ""
    return row


def _before(flying: Path, sets: dict[str, Path], output: Path) -> float:
    file = output / "flying.json"
    if not file.is_file():
        write_text(file, json.dumps(evaluate(str(flying), sets["new"])))
    return json.loads(file.read_text(encoding="utf-8"))["map50_95"]


def main() -> None:
    """Run the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="HIT-UAV's data.yaml")
    parser.add_argument("--weights", type=Path, required=True, help="has yolov8n-coco.pt")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--rows", type=int, default=10**6, help="stop after so many (default: all)"
    )
    a = parser.parse_args()
    a.output.mkdir(parents=True, exist_ok=True)
    sets = split_by_time(load_data(a.data), a.output)
    flying = fly_model(a.weights, sets["base"], a.output)
    table = a.output / "rows.csv"
    rows = list(csv.DictReader(table.open())) if table.is_file() else []
    done = {(row["arm"], int(row["seed"])) for row in rows}
    todo = [(arm, seed) for arm, seed in plan_of_rows() if (arm.name, seed) not in done]
    answers = a.output / "self-answers"
    for number, (arm, seed) in enumerate(todo[: a.rows], start=1):
        print(f"[{number}/{min(len(todo), a.rows)}] {arm.name}, seed {seed}", flush=True)
        if arm.labels == "self" and not answers.is_dir():
            both = replace(load_data(sets["new"]), test=None)
            paths = [*image_paths(both.train), *image_paths(both.val)]
            paths += image_paths(load_data(sets["base"]).train)
            write_text(a.output / "all.txt", "".join(f"{p}\n" for p in paths))
            listed = replace(both, train=(a.output / "all.txt").resolve())
            whole = listed.write_resolved(a.output / "all.yaml")
            predict(str(flying), whole, answers, imgsz=2 * IMGSZ)
        rows.append(run_row(arm, seed, sets, flying, answers, a.output))
        write_text(table, as_csv(rows))
        print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
