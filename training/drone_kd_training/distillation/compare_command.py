# SPDX-License-Identifier: AGPL-3.0-or-later
"""drone-kd compare: baseline, built-in distillation and ours on paired seeds."""

from __future__ import annotations

import argparse
from pathlib import Path

from drone_kd_training.dataclass_options import add_config_options, from_arguments
from drone_kd_training.distillation.config import Config
from drone_kd_training.isolation import add_trust_option

INTERRUPTED = "finished runs are kept: the same command continues"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    groups = add_config_options(parser, Config, omit=("teachers", "seed", "quantize"))
    groups["data and models"].add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder of all runs"
    )
    add_trust_option(groups["data and models"])
    comparison = parser.add_argument_group("comparison")
    comparison.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="one run per arm each"
    )
    comparison.add_argument(
        "--arms",
        nargs="+",
        metavar="ARM",
        help="plain, distilled, builtin:WEIGHT, or changes to distilled such as "
        "'terms=class+box;balance=0.1' (default: plain, the built-in at 0.5, 1, 2 and 6, "
        "distilled, and distilled without each of its terms)",
    )
    comparison.add_argument(
        "--select",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="for choosing settings: evaluate on this share of the training frames, held out in "
        "contiguous blocks, instead of the validation split",
    )
    comparison.add_argument(
        "--cluster",
        metavar="HOST:PORT",
        help="Ray cluster that sees all these paths: one task per run (default: this machine)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train every arm with every seed and print the table."""
    config = from_arguments(Config, arguments, seed=arguments.seeds[0])
    from drone_kd_training.distillation.compare import compare, default_arms

    arms = arguments.arms or default_arms(config)
    seeds = tuple(arguments.seeds)
    compare(config, arguments.output, seeds, arms, arguments.select, arguments.cluster)
    print((arguments.output / "compare.md").read_text(encoding="utf-8"))
    return 0
