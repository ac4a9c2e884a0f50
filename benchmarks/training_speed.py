# SPDX-License-Identifier: AGPL-3.0-or-later
"""Time of a training step: student alone, with a teacher, with stored predictions, and settings.

    python -m benchmarks.training_speed --data data.yaml --unlabelled flights \
      --teacher teacher.pt --student yolo11n.pt --imgsz 320 --output runs/speed

Each round trains every variant in turn for two epochs of `STEPS` steps; the second one counts: the
loader is warm, and stored predictions are there if the data have at most `STEPS` batches. Printed:
the median seconds of a step over the rounds, and its ratio to the student alone in the same round.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from dataclasses import replace
from pathlib import Path

from drone_kd.files import write_text
from drone_kd_training.distillation.config import LONGEST_EPOCH, NO_TEACHER, Config
from drone_kd_training.distillation.distill import prepare_data, train, validate

STEPS = LONGEST_EPOCH


def variants(config: Config) -> dict[str, Config]:
    """Return the settings to compare; the first one is the reference."""
    alone = replace(config, teacher=NO_TEACHER, unlabelled=())
    slow = {**config.overrides, "cache": False}
    return {
        "student alone": alone,
        "student alone, images from disk": replace(alone, overrides=slow),
        "student alone, bfloat16": replace(alone, overrides={**config.overrides, "amp": "bf16"}),
        "teacher at every step": config,
        "stored predictions": replace(config, views=1),
    }


def seconds_per_step(config: Config, output: Path) -> float:
    """Train, and return the seconds of a step in the second epoch."""
    train(*prepare_data(validate(config, output, resume=False)))
    with (output / "results.csv").open(encoding="utf-8") as file:
        first, second = (float(row["time"]) for row in csv.DictReader(file))
    return (second - first) / STEPS


def main() -> None:
    """Measure; write speed.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("data", "teacher", "student"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--unlabelled", nargs="+", required=True)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    a = parser.parse_args()
    settings = {"nbs": a.batch, "optimizer": "AdamW", "lr0": 0.0005}
    config = Config(
        data=a.data,
        teacher=a.teacher,
        student=a.student,
        unlabelled=tuple(a.unlabelled),
        imgsz=a.imgsz,
        batch=a.batch,
        steps=2 * STEPS,
        val=False,
        overrides=settings,
    )
    times: dict[str, list[float]] = {name: [] for name in variants(config)}
    for number in range(a.rounds):
        for name, variant in variants(config).items():
            folder = a.output / f"{number}-{name.replace(' ', '-').replace(',', '')}"
            times[name].append(seconds_per_step(variant, folder.resolve()))
    reference = next(iter(times.values()))
    lines = ["variant,seconds_per_step,ratio"]
    for name, values in times.items():
        ratio = statistics.median(x / y for x, y in zip(values, reference, strict=True))
        lines.append(f'"{name}",{statistics.median(values):.3f},{ratio:.2f}')
    write_text(a.output / "speed.csv", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
