# SPDX-License-Identifier: AGPL-3.0-or-later
"""drone-kd compare: distillation and its baselines, on paired seeds or on label subsets."""

from __future__ import annotations

import argparse
from pathlib import Path

from drone_kd_training.dataclass_options import add_config_options, from_arguments
from drone_kd_training.distillation.config import Config
from drone_kd_training.isolation import add_trust_option

PAIRED, FEW_LABELS, ALL = "paired", "few-labels", "all"
ARMS_HELP = (
    "few (student alone), few:STEPS, few:half, all (all labels), few-time (few for as long as "
    "ours takes), hard:SCORE (pseudo-labels of the teacher), builtin:WEIGHT, "
    "builtin-hard:WEIGHT[:SCORE], ours, ours;KEY=VALUE;..."
)
INTERRUPTED = "finished runs are kept: the same command continues"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    groups = add_config_options(
        parser, Config, omit=("teachers", "classes", "seed", "quantize", "baseline")
    )
    groups["data and models"].add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder of all runs"
    )
    add_trust_option(groups["data and models"])
    comparison = parser.add_argument_group("comparison")
    comparison.add_argument(
        "--protocol",
        choices=(PAIRED, FEW_LABELS),
        default=PAIRED,
        help="paired: all labels, arms on the same batches; few-labels: a few frames of train "
        "keep their labels, the others are unlabelled frames (needs --steps, implies --no-val; "
        "several processes with one --output share the runs)",
    )
    comparison.add_argument(
        "--labels",
        type=_number_of_labels,
        nargs="+",
        metavar="N",
        help="few-labels: labelled frames, or all; further numbers are points of the learning "
        "curve of few and ours, 0 of ours alone (default: 5)",
    )
    comparison.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        metavar="N",
        help="one run per arm each; few-labels: of a label subset each (default: 0 1 2, "
        "few-labels: 0 1 2 3 4)",
    )
    comparison.add_argument(
        "--arms",
        nargs="+",
        metavar="ARM",
        help="plain, plain:time (for as long as distilled takes), distilled, builtin:WEIGHT, or "
        f"changes to distilled such as 'terms=class+box;balance=0.1'; few-labels: {ARMS_HELP}; "
        "ours is compared with the first hard:SCORE (default: all baselines, the distilled arm, "
        "and that without each of its parts)",
    )
    comparison.add_argument(
        "--select",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="for choosing settings: evaluate on a share of the training frames, instead of the "
        "validation split; whole flights where file names tell them, else stretches of frames",
    )
    comparison.add_argument(
        "--cluster",
        metavar="HOST:PORT",
        help="paired: Ray cluster that sees all these paths, one task per run (default: this "
        "machine)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train every arm with every seed; print the tables, then the primary comparison."""
    few = arguments.protocol == FEW_LABELS
    seeds = tuple(arguments.seeds or range(5 if few else 3))
    config = from_arguments(Config, arguments, seed=seeds[0])
    if few and arguments.cluster:
        raise ValueError("--cluster needs --protocol paired: start the command on each machine")
    if not few and arguments.labels:
        raise ValueError("--labels needs --protocol few-labels")
    if few:
        _compare_few_labels(config, arguments, seeds)
    else:
        _compare(config, arguments, seeds)
    text = (arguments.output / "compare.md").read_text(encoding="utf-8")
    print(text, text.splitlines()[0], sep="\n")  # the primary comparison comes last, too
    return 0


def _compare(config: Config, arguments: argparse.Namespace, seeds: tuple[int, ...]) -> None:
    from drone_kd_training.distillation.compare import compare, default_arms

    arms = arguments.arms or default_arms(config)
    compare(config, arguments.output, seeds, arms, arguments.select, arguments.cluster)


def _compare_few_labels(
    config: Config, arguments: argparse.Namespace, seeds: tuple[int, ...]
) -> None:
    from drone_kd_training.distillation.few_labels import DEFAULT_LABELS, compare_few_labels

    labels = [None if n == ALL else n for n in arguments.labels or [DEFAULT_LABELS]]
    compare_few_labels(
        config, arguments.output, seeds, arguments.arms or (), labels, arguments.select
    )


def _number_of_labels(text: str) -> int | str:
    """Return a number of labelled frames, or "all"; ValueError."""
    return text if text == ALL else int(text)
