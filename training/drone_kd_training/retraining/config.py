# SPDX-License-Identifier: AGPL-3.0-or-later
"""Configuration of a retraining, and its command-line options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from drone_kd.core.model_spec import PRECISIONS
from drone_kd_training.options import option

_INPUT, _FORGETTING, _TRAINING = "data and models", "against forgetting", "training"


@dataclass(frozen=True)
class Plan:
    """A retraining; `retrain` writes it into its folder.

    Attributes:
        model: the checkpoint of the deployed model.
        replay: in [0, 1), as far as the base has so many frames; spread over the base.
        keep: in [0, 1); a half is the advice of Wortsman et al. 2022 (arXiv:2109.01903) where
            nothing was tuned.
    """

    model: str
    mined: str = option(help="folder of `drone-kd mine`", metavar="DIR", group=_INPUT)
    data: str = option(help="data.yaml that the model was trained on so far", group=_INPUT)
    teacher: str = option(
        help="the teacher that labelled the mined frames: a checkpoint, or a folder of its "
        "predictions on the base's training frames",
        group=_INPUT,
    )
    replay: float = option(
        0.75,
        metavar="SHARE",
        help="share of base frames among those of an epoch",
        group=_FORGETTING,
    )
    keep: float = option(
        0.5,
        metavar="SHARE",
        help="share of the deployed model in the candidate's weights",
        group=_FORGETTING,
    )
    epochs: int = option(10, metavar="N", help="training epochs", group=_TRAINING)
    batch: int = option(8, metavar="N", help="frames per step", group=_TRAINING)
    imgsz: int | None = option(
        None, metavar="PX", help="square input (default: as trained)", group=_TRAINING
    )
    device: str = option(
        "", help="cpu, 0, or 0,1 (default: the GPU if there is one)", group=_TRAINING
    )
    seed: int = option(0, metavar="N", help="of order and augmentation", group=_TRAINING)
    precision: str = option(
        "fp32", choices=PRECISIONS, help="of the exported file", group="export"
    )
    parent: str = option(
        "", metavar="ONNX", help="the deployed file, for the lineage", group="export"
    )
    overrides: Mapping[str, object] = option(
        factory=dict,
        flag="--set",
        help="a training setting of Ultralytics, such as lr0=0.01; repeatable",
        group=_TRAINING,
    )
