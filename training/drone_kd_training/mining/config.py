# SPDX-License-Identifier: AGPL-3.0-or-later
"""Configuration of mining, and its command-line options."""

from __future__ import annotations

from dataclasses import dataclass, field

from drone_kd_training.dataclass_options import option
from drone_kd_training.mining.reasons import SHARES
from drone_kd_training.teachers import IGNORE_BAND


@dataclass(frozen=True)
class Settings:
    """What the result depends on; ``shares``: see `selection.pick`."""

    teacher: str = option(help=".pt (YOLO or RT-DETR) or .onnx", metavar="MODEL")
    student: str | None = option(
        required=False,
        metavar="MODEL",
        help="deployed model, .onnx or .pt (default: the model of the package)",
    )
    frames: int = option(metavar="N", help="number of training frames, at most")
    per_scene: int = option(5, metavar="N", help="frames of one scene, at most")
    shares: dict[str, float] = field(default_factory=SHARES.copy)
    pseudo_threshold: float = option(
        IGNORE_BAND[1],
        metavar="SCORE",
        flag="--pseudo-threshold",
        aliases=("--sure",),  # of version 0.1
        help="a box of the teacher above this score is a pseudo-label",
    )
    ledger: str = option(
        "",
        metavar="FILE",
        help="record that keeps each flight on one side for ever, for learning or for judging "
        "(default: of 22 flights or more one in five judges; of fewer, time blocks of each)",
    )
