# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ablation of the default model's recipe: labels, teachers and masks.

    python -m benchmarks.default_model --shared SHARED --thermal THERMAL.pt --output OUT
      [--arms recipe labels visdrone unmasked] [--seeds 0 1] [--epochs 2]

recipe: recipes/default_model.yaml unchanged. labels: no teacher, and so no unlabelled frame.
visdrone: pseudo-labels of that teacher alone; only synthetic images keep their labels. unmasked:
unlabelled classes of a set count as background. Each arm is measured as trained and after weight
interpolation with the start, as in the default model. Finished runs are kept: the same command
continues, and prints the table of all finished runs.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from benchmarks.rig import markdown_head, markdown_row
from drone_kd.provenance import write_provenance
from drone_kd_training.data.dataset import load_data, write_text
from drone_kd_training.distillation.distill import distill
from drone_kd_training.models.weight_interpolation import interpolate_weights
from drone_kd_training.recipes.default_model import (
    PLAN,
    Recipe,
    fill_in,
    save_start,
    student_config,
)
from drone_kd_training.recipes.default_model_data import KINDS, TEST_SETS, prepare, write_test_set
from drone_kd_training.recipes.default_model_figures import INPUT_PX, measure
from drone_kd_training.tables import as_csv, format_score

ARMS = ("recipe", "labels", "visdrone", "unmasked")
DRAWN = "procedural"
# Weights of the start in the interpolation: none, and that of the default model.
KEPT = (0.0, 0.3)


def plan_of(arm: str, content: dict, folder: Path) -> dict:
    """Return the recipe's sources and teachers for an arm; `folder` takes its data.yaml files."""
    sources, teachers = content["sources"], content["teachers"]
    if arm == "labels":
        known = {name: s for name, s in sources.items() if "data" in s or s.get("empty")}
        return content | {"sources": known, "teachers": {}}
    if arm == "visdrone":
        predicted = {
            name: s if name == DRAWN else without_labels(s) for name, s in sources.items()
        }
        everywhere = sorted(predicted.keys() - {DRAWN})
        teacher = teachers[arm] | {"sources": everywhere}
        return content | {"sources": predicted, "teachers": {arm: teacher}}
    if arm == "unmasked":
        claimed = {
            name: s | {"data": claim_all(s, content["names"], folder / f"{name}.yaml")}
            for name, s in sources.items()
            if "data" in s
        }
        return content | {"sources": sources | claimed}
    return content


def without_labels(source: dict) -> dict:
    """Return a source of the recipe without its labels."""
    images = source["images"] if "images" in source else str(load_data(source["data"]).train)
    return {"images": images} | {k: source[k] for k in ("every", "crops") if k in source}


def claim_all(source: dict, names: list[str], path: Path) -> str:
    """Write a source's data.yaml with all classes of the student, so that none is masked."""
    data = load_data(source["data"])
    mapped = {(source.get("classes") or {}).get(name, name) for name in data.names}
    missing = tuple(name for name in names if name not in mapped)
    path.parent.mkdir(parents=True, exist_ok=True)
    return str(replace(data, names=data.names + missing).write_resolved(path))


def run(arm: str, seed: int, a: argparse.Namespace) -> list[dict]:
    """Train an arm and measure it; returns a row for each weight of the start."""
    folder = a.output / "runs" / f"{arm}-seed{seed}"
    recipe = Recipe(epochs=a.epochs, seed=seed)
    text = fill_in(PLAN, a.shared, a.output / "work", a.thermal)
    plans = a.output / "plans"
    content = plan_of(arm, yaml.safe_load(text), plans / arm)
    content["predictions"] = str(a.output / "predictions")
    plan = plans / f"{arm}.yaml"
    write_text(plan, yaml.safe_dump(content, sort_keys=False))
    student = save_start(a.shared / "weights/yolov8n-coco.pt", a.output / "start.pt")
    config = student_config(plan, student, recipe)
    seconds = distill(config, folder, resume=(folder / "config.yaml").is_file())["seconds"]
    frames = len((folder / "frames/train.txt").read_text(encoding="utf-8").splitlines())
    rows = []
    for kept in KEPT:
        model = folder / f"kept-{kept:g}.pt"
        if not model.is_file():
            interpolate_weights(folder / "best.pt", student, kept, model)
        row = {"arm": arm, "seed": seed, "kept": kept, "frames": frames, "seconds": seconds}
        for ground in TEST_SETS:
            data = a.output / "test_sets" / ground / "data.yaml"
            found = measure(model, data, a.output / "figures", classes=KINDS)
            row |= {f"{ground} {key}": found[key] for key in ("map50", "map50_95")}
        row["mean map50"] = round(float(np.mean([row[f"{g} map50"] for g in TEST_SETS])), 5)
        rows.append(row)
    write_text(folder / "rows.csv", as_csv(rows))
    return rows


def finished(output: Path) -> list[dict]:
    """Return the rows of all finished runs."""
    rows: list[dict] = []
    for file in sorted((output / "runs").glob("*/rows.csv")):
        rows += csv.DictReader(file.open(encoding="utf-8"))
    return sorted(rows, key=lambda row: (row["kept"], ARMS.index(row["arm"]), row["seed"]))


def table(rows: list[dict]) -> str:
    """Return AP50 in percent, mean over the seeds [each], as Markdown."""
    lines = [markdown_head(["arm", "start kept", "frames", *TEST_SETS, "mean"])]
    for arm, kept in dict.fromkeys((row["arm"], row["kept"]) for row in rows):
        own = [row for row in rows if (row["arm"], row["kept"]) == (arm, kept)]
        scores = np.array([[float(row[f"{g} map50"]) for g in TEST_SETS] for row in own])
        cells = [
            f"{format_score(column.mean())} [{', '.join(map(format_score, column))}]"
            for column in (*scores.T, scores.mean(1))
        ]
        lines.append(markdown_row([arm, f"{float(kept):g}", own[0]["frames"], *cells]))
    return "\n".join(lines)


def main() -> None:
    """Run the missing arms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, required=True, help="as for make default-model")
    parser.add_argument("--thermal", type=Path, required=True, help="teacher of thermal frames")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, default=2)
    a = parser.parse_args()
    for name in ("shared", "thermal", "output"):
        setattr(a, name, getattr(a, name).resolve())
    prepare(a.shared, a.output / "work", Recipe().procedural, Recipe().seed)
    for ground in TEST_SETS:
        if not (a.output / "test_sets" / ground / "data.yaml").is_file():
            write_test_set(a.shared, ground, a.output / "test_sets" / ground)
    runs = [(arm, seed) for seed in a.seeds for arm in a.arms]
    for number, (arm, seed) in enumerate(runs, start=1):
        print(f"[{number}/{len(runs)}] {arm}, seed {seed}", flush=True)
        run(arm, seed, a)
    rows = finished(a.output)
    write_text(a.output / "parts.csv", as_csv(rows))
    write_provenance(a.output, " ".join(map(str, a.seeds)), " ".join(KINDS), str(INPUT_PX))
    print(table(rows))


if __name__ == "__main__":
    main()
