# SPDX-License-Identifier: AGPL-3.0-or-later
"""Operating curve of the retraining guard: acceptances over true gain, flights and labels.

    python -m benchmarks.guard_curve --data HIT-UAV/data.yaml --output OUT

Objects are HIT-UAV's (both splits, in stretches); predictions are simulated, so that the truth is
known and nothing is trained. The deployed model scores objects and false positives by normal
draws, which the objects of a stretch share in part. A candidate has the same scores with noise, a
shift per stretch and a common shift, which is solved for: its AP over all stretches is exactly as
much higher as wanted. A judgement draws stretches, each from another flight, and a few frames of
each, and asks the guard's own bootstrap about the row "all". AP is of one class at one IoU
threshold.

Writes guard-curve.csv and guard-curve.png; prints the table. It takes 4 minutes
on one idle core.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from benchmarks.rig import markdown_head, markdown_row
from drone_kd.files import write_text
from drone_kd.progress import track
from drone_kd.provenance import write_provenance
from drone_kd_training.data.dataset import image_paths, label_path, load_data, read_labels
from drone_kd_training.retraining.bootstrap import (
    MatchedBoxes,
    average_precision,
    effective_blocks,
    interval,
    resample_blocks,
)
from drone_kd_training.retraining.guard_margins import CONFIDENCE, GAIN, MARGIN, MIN_BLOCKS
from drone_kd_training.retraining.stretches import frame_blocks
from drone_kd_training.tables import as_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLOCKS = (6, 8, 12, 20, 40)  # flights
FRAMES = (3, 10)  # judged frames of each
GAINS = (-1, 0, 2, 5, 10)  # true gains, in points
# Judgements of a setting; simulations of all predictions, which they take in turn.
RESAMPLES, JUDGEMENTS, SIMULATIONS = 100, 480, 8
# Standard deviations of a score: of an object, of a stretch; of a candidate's noise, and of its
# shift in a stretch. Two equal models then differ by 5.6 points in a stretch (standard deviation).
OBJECT, STRETCH, NOISE, SHIFT = 1.2, 0.6, 0.3, 0.2
FALSE_POSITIVES, FALSE_SCORE, LEAST_SCORE = 6.0, -0.5, -1.0
# The guard as it is; its interval by percentiles of the same bootstrap; a bootstrap of frames.
GUARD, PERCENTILE, BY_FRAME = "guard", "percentiles", "percentiles, by frame"
NAME = "guard-curve"


class Stretch(NamedTuple):
    """Predictions in a stretch: frame (P,), hit (P,), scores (M, P) by model; objects (F,)."""

    frame: np.ndarray
    hit: np.ndarray
    scores: np.ndarray
    objects: np.ndarray


def read_objects(data: Path) -> list[np.ndarray]:
    """Return the number of objects in each frame, one array per stretch."""
    dataset = load_data(data)
    paths = [p for split in (dataset.train, dataset.val) for p in image_paths(split)]
    counts = np.array([len(read_labels(label_path(p), len(dataset.names))) for p in paths])
    of_frame = frame_blocks(paths, least=len(paths)).of_frame
    stretches = [counts[of_frame == k] for k in range(of_frame.max() + 1)]
    return [s for s in stretches if len(s) >= max(FRAMES)]


def simulate(objects: list[np.ndarray], rng: np.random.Generator) -> list[Stretch]:
    """Return each stretch with the predictions of the deployed model and of all candidates."""
    parts = []
    for own in objects:
        false = rng.poisson(FALSE_POSITIVES, len(own))
        frame = np.repeat(np.tile(np.arange(len(own)), 2), [*own, *false])
        hit = np.arange(len(frame)) < own.sum()
        deployed = np.where(hit, rng.normal(0, STRETCH), FALSE_SCORE)
        deployed = deployed + rng.normal(0, OBJECT, len(frame))
        moved = (
            deployed + rng.normal(0, NOISE, len(frame)) + np.where(hit, rng.normal(0, SHIFT), 0)
        )
        parts.append(Stretch(frame, hit, np.array([deployed, moved]), own))
    base = _ap(parts, 0)
    shifts = [_solve(parts, base + gain / 100) for gain in GAINS]
    return [
        part._replace(
            scores=np.vstack([part.scores[0], *(part.scores[1] + s * part.hit for s in shifts)])
        )
        for part in parts
    ]


def _solve(parts: list[Stretch], wanted: float) -> float:
    """Return the shift of the candidate's scores on objects with which its AP is as wanted."""
    low, high = -3.0, 3.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if _ap(parts, 1, middle) < wanted else (low, middle)
    return middle


def _ap(parts: list[Stretch], model: int, shift: float = 0.0) -> float:
    matched = _match(parts, model, shift)
    return float(average_precision(matched, np.ones((1, len(parts)), np.int64))[0])


def spread(stretches: list[Stretch]) -> float:
    """Return the standard deviation over stretches of the gain of the equal model, in points."""
    equal = 1 + GAINS.index(0)
    return 100 * float(np.nanstd([_ap([s], equal) - _ap([s], 0) for s in stretches]))


def _match(parts: list[Stretch], model: int, shift: float = 0.0) -> MatchedBoxes:
    """Return a model's predictions; its "frames" are the stretches."""
    scores = np.concatenate([p.scores[model] + shift * p.hit for p in parts])
    hit = np.concatenate([p.hit for p in parts])
    block = np.repeat(np.arange(len(parts)), [len(p.hit) for p in parts])
    order = np.argsort(-scores, kind="stable")[: int((scores > LEAST_SCORE).sum())]
    hits = hit[order][None]
    objects = np.array([p.objects.sum() for p in parts])
    return MatchedBoxes(block[order], hits, np.ones_like(hits), objects)


def draw(stretches: list[Stretch], blocks: int, frames: int, rng: np.random.Generator) -> list:
    """Draw stretches with replacement, and frames of each without."""
    drawn = []
    for k in rng.integers(len(stretches), size=blocks):
        part = stretches[k]
        chosen = np.sort(rng.choice(len(part.objects), frames, replace=False))
        kept = np.isin(part.frame, chosen)
        frame = np.searchsorted(chosen, part.frame[kept])
        scores = part.scores[:, kept]
        drawn.append(Stretch(frame, part.hit[kept], scores, part.objects[chosen]))
    return drawn


def single_frames(parts: list[Stretch]) -> list[Stretch]:
    """Return each frame as a stretch of its own."""
    return [
        Stretch(part.frame[own], part.hit[own], part.scores[:, own], part.objects[[i]])
        for part in parts
        for i, own in enumerate(part.frame == np.arange(len(part.objects))[:, None])
    ]


def gains(parts: list[Stretch], models: range) -> tuple[np.ndarray, np.ndarray]:
    """Return the gain of each candidate (C,) and of its resamples (C, N)."""
    once = np.ones((1, len(parts)), np.int64)
    weights = np.vstack([once, resample_blocks(np.arange(len(parts)), RESAMPLES)])
    ap = np.array([average_precision(_match(parts, model), weights) for model in models])
    difference = ap[1:] - ap[0]
    return difference[:, 0], difference[:, 1:]


def decisions(parts: list[Stretch]) -> Iterator[tuple[str, str, int, bool]]:
    """Yield rule, domain, true gain in points, and whether the candidate passes."""
    of_frame = np.arange(len(parts))
    blocks = effective_blocks(of_frame, np.array([part.objects.sum() for part in parts]))
    enough = blocks >= MIN_BLOCKS
    figures, resampled = gains(parts, range(len(GAINS) + 1))
    for gain, figure, own in zip(GAINS, figures, resampled, strict=True):
        for domain, least in (("new", GAIN), ("base", MARGIN)):
            passes = enough and interval(figure, own, blocks, CONFIDENCE)[0] > least
            yield GUARD, domain, gain, bool(passes)
            yield PERCENTILE, domain, gain, bool(_percentile(own) > least)
    equal = 1 + GAINS.index(0)
    pair = [part._replace(scores=part.scores[[0, equal]]) for part in single_frames(parts)]
    yield BY_FRAME, "new", 0, bool(_percentile(gains(pair, range(2))[1][0]) > GAIN)


def _percentile(values: np.ndarray) -> float:
    return float(np.quantile(values, (1 - CONFIDENCE) / 2))


def measure(simulated: list[list[Stretch]], rng: np.random.Generator) -> list[dict]:
    """Return the share of accepted candidates by rule, domain, gain, flights and frames."""
    rows = []
    for blocks, frames in track(list(product(BLOCKS, FRAMES)), "Judge", "setting"):
        counts: Counter = Counter()
        labels = few = 0
        for number in range(JUDGEMENTS):
            parts = draw(simulated[number % SIMULATIONS], blocks, frames, rng)
            objects = np.array([part.objects.sum() for part in parts])
            labels += int(objects.sum())
            few += effective_blocks(np.arange(blocks), objects) < MIN_BLOCKS
            for *key, passes in decisions(parts):
                counts[tuple(key)] += passes
        rows += [
            {"rule": rule, "domain": domain, "true_gain": gain, "flights": blocks,
             "frames_per_flight": frames, "labels": round(labels / JUDGEMENTS),
             "judgements": JUDGEMENTS, "accepted": round(accepted / JUDGEMENTS, 4),
             "not_enough_flights": round(few / JUDGEMENTS, 4)}
            for (rule, domain, gain), accepted in counts.items()
        ]  # fmt: skip
    return rows


def table(rows: list[dict]) -> str:
    """Return the shares of accepted candidates as Markdown, in percent."""
    columns = [
        (f"new {gain:+d}" if gain else "new, equal", (GUARD, "new", gain)) for gain in GAINS
    ]
    columns += [("base -1", (GUARD, "base", -1)), ("base, equal", (GUARD, "base", 0))]
    columns += [("new, equal, by frame", (BY_FRAME, "new", 0))]
    lines = [markdown_head(["flights", "labels", *(name for name, _ in columns)])]
    for blocks, frames in product(BLOCKS, FRAMES):
        own = {
            (r["rule"], r["domain"], r["true_gain"]): r
            for r in rows
            if (r["flights"], r["frames_per_flight"]) == (blocks, frames)
        }
        shares = [f"{100 * own[key]['accepted']:.1f}" for _, key in columns]
        lines.append(markdown_row([blocks, own[GUARD, "new", 0]["labels"], *shares]))
    return "\n".join(lines)


def draw_curves(rows: list[dict], file: Path) -> None:
    """Draw acceptances over the number of flights: equal models, and better ones."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    frames = FRAMES[-1]

    def curve(axis: Axes, rule: str, domain: str, gain: int, label: str) -> None:
        key = {"rule": rule, "domain": domain, "true_gain": gain, "frames_per_flight": frames}
        own = [row for row in rows if all(row[k] == v for k, v in key.items())]
        shares = [100 * row["accepted"] for row in own]
        axis.plot([row["flights"] for row in own], shares, marker="o", label=label)

    for rule in (BY_FRAME, PERCENTILE, GUARD):
        curve(axes[0], rule, "new", 0, rule)
    axes[0].axhline(2.5, color="grey", linestyle="--", label="nominal 2.5 %")
    axes[0].set(title="Equal models accepted", ylabel="accepted (%)")
    for gain in GAINS[1:]:
        curve(axes[1], GUARD, "new", gain, f"{gain:+d} points" if gain else "equal")
    axes[1].set(title="Better models accepted by the guard", ylim=(-3, 103))
    for axis in axes:
        axis.set(xlabel=f"flights ({frames} frames of each)")
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    """Simulate, write both files and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="HIT-UAV's data.yaml")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    rng = np.random.default_rng(a.seed)
    objects = read_objects(a.data)
    simulated = [simulate(objects, rng) for _ in range(SIMULATIONS)]
    rows = measure(simulated, rng)
    write_text(a.output / f"{NAME}.csv", as_csv(rows))
    write_provenance(a.output, str(a.seed), "one, simulated", "none: no images")
    draw_curves(rows, a.output / f"{NAME}.png")
    print(table(rows))
    points = np.mean([spread(stretches) for stretches in simulated])
    print(f"\nIn a stretch two equal models differ by {points:.1f} points (standard deviation)")


if __name__ == "__main__":
    main()
