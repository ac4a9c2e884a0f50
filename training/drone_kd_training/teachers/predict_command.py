# SPDX-License-Identifier: AGPL-3.0-or-later
"""drone-kd predict: a teacher's predictions, written to disk once."""

from __future__ import annotations

import argparse
from pathlib import Path

from drone_kd_training.isolation import add_trust_option


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("model", metavar="teacher.pt", help="checkpoint of the teacher")
    parser.add_argument("--data", required=True, help="data.yaml in Ultralytics' format")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="new folder, for --teacher"
    )
    parser.add_argument("--split", default="train", help="train, val or test")
    parser.add_argument(
        "--imgsz", type=int, metavar="PX", help="square input (default: as trained)"
    )
    add_trust_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Predict and print the number of images."""
    from drone_kd_training.teachers.predict import predict

    a = arguments
    images = predict(a.model, a.data, a.output, split=a.split, imgsz=a.imgsz)
    print(f"{images} images: {a.output}")
    return 0
