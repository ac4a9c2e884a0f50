# SPDX-License-Identifier: AGPL-3.0-or-later
"""What labels cost a person: minutes by a model from the literature, and gain per unit of cost.

Nothing of this was measured here. Real times depend on the tool, the objects and the person.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drone_kd_training.distillation.arm_figures import ratio_interval

# A box by four clicks on its extreme points: Papadopoulos et al., "Extreme clicking for efficient
# object annotation" (ICCV 2017, arXiv:1708.02750).
CLICKED_BOX_S = 7.0
# A box that is drawn (25.5 s) and checked (9.0 s), medians of Su, Deng and Fei-Fei, "Crowdsourcing
# annotations for visual object detection" (AAAI workshop on human computation 2012).
DRAWN_BOX_S = 34.5
# Looking over a frame for objects without a box: the coverage check of Su et al., median.
FRAME_S = 7.8


@dataclass(frozen=True)
class LabelCost:
    """Seconds that a person spends on each box and on each frame."""

    box_s: float = CLICKED_BOX_S
    frame_s: float = FRAME_S

    def minutes(self, frames: float, boxes: float) -> float:
        """Return the minutes that labelling takes."""
        return (self.frame_s * frames + self.box_s * boxes) / 60


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `read_options` reads."""
    add = parser.add_argument
    add(
        "--box-seconds",
        type=float,
        default=CLICKED_BOX_S,
        help=f"of a person, per box (default: {CLICKED_BOX_S:g}, by extreme clicking; drawn and "
        f"checked: {DRAWN_BOX_S:g})",
    )
    add(
        "--frame-seconds",
        type=float,
        default=FRAME_S,
        help=f"of a person, per frame, besides the boxes (default: {FRAME_S:g})",
    )


def read_options(arguments: argparse.Namespace) -> LabelCost:
    """Return the cost model of the command line."""
    return LabelCost(arguments.box_seconds, arguments.frame_seconds)


def format_ratio(above: Sequence[float], below: Sequence[float], digits: int = 2) -> str:
    """Return the ratio of two means of pairs, with its 95 % interval where the pairs give one."""
    if not above or np.mean(below) <= 0:
        return "-"
    text = f"{np.mean(above) / np.mean(below):.{digits}f}"
    limits = ratio_interval(above, below)
    return text if limits is None else f"{text} [{limits[0]:.{digits}f}, {limits[1]:.{digits}f}]"
