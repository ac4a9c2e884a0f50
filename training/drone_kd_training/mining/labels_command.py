# SPDX-License-Identifier: AGPL-3.0-or-later
"""drone-kd labels: mined labels to an annotation tool, and corrected ones back."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("mined", type=Path, metavar="MINED", help="folder of `drone-kd mine`")
    direction = parser.add_mutually_exclusive_group(required=True)
    metavar = ("coco|cvat|labelme", "PATH")
    direction.add_argument("--to", nargs=2, metavar=metavar, help="write the labels there")
    read = "import corrected labels"
    direction.add_argument("--from", dest="from_", nargs=2, metavar=metavar, help=read)
    checked = "with --from: a person has checked every frame in it (default: those that changed)"
    parser.add_argument("--checked", action="store_true", help=checked)


def run(arguments: argparse.Namespace) -> int:
    """Export or import the labels and print how many frames there were."""
    from drone_kd_training.mining.annotation_formats import FORMATS, export_labels, import_labels

    format_, path = arguments.to or arguments.from_
    if format_ not in FORMATS:
        raise ValueError(f"expected one of {', '.join(FORMATS)}, got {format_!r}")
    mined = arguments.mined
    if arguments.to:
        print(f"{export_labels(mined, format_, Path(path))} frames: {path}")
        return 0
    frames, corrected = import_labels(mined, format_, Path(path), arguments.checked)
    print(f"{corrected} of {frames} frames have a person's labels now: {mined}")
    return 0
