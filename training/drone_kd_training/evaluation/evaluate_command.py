# SPDX-License-Identifier: AGPL-3.0-or-later
"""drone-kd evaluate: mAP of a .pt or .onnx, by object size and class."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from drone_kd_training.isolation import add_trust_option


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    add("model", metavar="MODEL", help=".pt or .onnx")
    add("--data", required=True, help="data.yaml in Ultralytics' format")
    add("--split", default="val", help="train, val or test")
    add("--imgsz", type=int, metavar="PX", help="square input of a .pt (default: as trained)")
    add("--tiling", default="off", help="off, auto or ROWSxCOLUMNS, as of the node")
    add("--json", type=Path, metavar="OUT", help="file for the metrics")
    add_trust_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print the metrics."""
    from drone_kd.files import check_writable, write_text
    from drone_kd_training.evaluation.evaluate import evaluate
    from drone_kd_training.tables import format_score as points

    a = arguments
    if a.json:
        check_writable(a.json)
    metrics = evaluate(a.model, a.data, split=a.split, imgsz=a.imgsz, tiling=a.tiling)
    if a.json:
        write_text(a.json, json.dumps(metrics, indent=1))
    for key in ("map50_95", "map50", "ap_tiny", "ap_small", "ap_medium", "ap_large"):
        print(f"{key:<10} {points(metrics[key])}")
    for name, ap in metrics["per_class"].items():
        print(f"  {name:<16} AP50-95 {points(ap['ap50_95'])}  AP50 {points(ap['ap50'])}")
    for name in metrics["classes_not_in_model"]:
        print(f"  {name:<16} not a class of the model, excluded from the means")
    ignored = f", {metrics['images_ignored']} ignored" if metrics["images_ignored"] else ""
    print(f"{metrics['images']} images{ignored}, {metrics['boxes']} boxes")
    return 0
