# SPDX-License-Identifier: AGPL-3.0-or-later
"""drone-kd mine: select the frames of flights that are worth a label, and pseudo-label them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from drone_kd_training.dataclass_options import add_config_options, from_arguments
from drone_kd_training.isolation import add_trust_option
from drone_kd_training.mining.config import Settings

INTERRUPTED = "finished work is kept: the same command continues"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    flights = "bag (MCAP, sqlite3), video or folder of images; path or URL (s3, gs, https, …)"
    add("flights", nargs="+", metavar="FLIGHT", help=flights)
    add("--output", type=Path, required=True, metavar="DIR", help="new data set")
    add_config_options(parser, Settings)
    topics = "camera topic of the bags; repeatable (default: all image topics)"
    add("--topic", action="append", default=[], help=topics)
    cluster = "Ray cluster that does the work (default: this machine)"
    add("--cluster", metavar="HOST:PORT", help=cluster)
    add_trust_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Mine and print how many frames were selected."""
    settings = from_arguments(Settings, arguments)
    from drone_kd_training.mining.mine import mine

    output = arguments.output
    done = mine(arguments.flights, output, settings, tuple(arguments.topic), arguments.cluster)
    print(f"{done['frames']} frames: {done['train']} selected, {done['val']} held out: {output}")
    if not done["val"]:
        print(
            "WARNING no frame is held out, and `drone-kd retrain` needs some: mine longer flights",
            file=sys.stderr,
        )
    return 0
