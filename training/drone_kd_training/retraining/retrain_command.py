# SPDX-License-Identifier: AGPL-3.0-or-later
"""drone-kd retrain: fine-tune the deployed model, and export it only if it is better."""

from __future__ import annotations

import argparse
from pathlib import Path

from drone_kd.text import one_line
from drone_kd_training.dataclass_options import add_config_options, from_arguments
from drone_kd_training.isolation import add_trust_option
from drone_kd_training.retraining.config import Plan

INTERRUPTED = "finished work is kept: the same command continues"
REFUSED = 3
_SHOWN = 5


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("model", metavar="MODEL.pt", help="checkpoint of the deployed model")
    group = add_config_options(parser, Plan)["data and models"]
    add_trust_option(group)
    group.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder of the run"
    )


def run(arguments: argparse.Namespace) -> int:
    """Retrain and print the comparison; 3 when the candidate was refused."""
    plan = from_arguments(Plan, arguments)
    from drone_kd_training.retraining.retrain import retrain

    result = retrain(plan, arguments.output, arguments.command_line)
    print(result["table"])
    if not result["accepted"]:
        print(f"{result['outcome']}: {result['reason']}")
        if frames := result["label_next"][:_SHOWN]:
            print(f"label next (of the held-out frames): {one_line(', '.join(frames), 400)}")
        print(f"keep the deployed model; all figures: {arguments.output / 'refused.json'}")
        return REFUSED
    print(f"accepted: {result['reason']}: {result['model']}")
    return 0
