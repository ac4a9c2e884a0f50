# SPDX-License-Identifier: AGPL-3.0-or-later
"""drone-kd generate: a procedural aerial data set in Ultralytics' layout."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="new folder")
    add("--train", type=int, required=True, metavar="N", help="number of training images")
    add("--val", type=int, required=True, metavar="N", help="number of validation images")
    add("--imgsz", type=int, default=640, metavar="PX", help="side of the square images")
    add("--zoom", type=float, default=1.0, metavar="X", help="size of the objects, 1 to 4")
    add("--thermal", action="store_true", help="as a thermal camera shows the places at night")
    add("--vehicles", action="store_true", help="label cars, trucks and buses as one class")
    add("--seed", type=int, default=0, metavar="N", help="same seed, same images")


def run(arguments: argparse.Namespace) -> int:
    """Render the data set and print its data.yaml."""
    from drone_kd_training.data.generate import generate

    a = arguments
    scene = {"imgsz": a.imgsz, "seed": a.seed, "zoom": a.zoom, "thermal": a.thermal}
    scene["vehicles"] = a.vehicles
    print(generate(a.output, a.train, a.val, **scene))
    return 0
