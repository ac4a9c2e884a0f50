# SPDX-License-Identifier: AGPL-3.0-or-later
"""Configuration of a retraining, and its command-line options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from drone_kd.core.model_spec import PRECISIONS
from drone_kd_training.dataclass_options import option

_input = partial(option, group="data and models")
_share = partial(option, group="against forgetting", metavar="SHARE")
_training, _export = partial(option, group="training"), partial(option, group="export")


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
    mined: str = _input(help="folder of `drone-kd mine`", metavar="DIR")
    data: str = _input(help="data.yaml that the model was trained on so far")
    teacher: str = _input(
        help="the teacher that labelled the mined frames: a checkpoint, or a folder of its "
        "predictions on the base's training frames"
    )
    replay: float = _share(0.75, help="share of base frames among those of an epoch")
    keep: float = _share(0.5, help="share of the deployed model in the candidate's weights")
    epochs: int = _training(10, metavar="N", help="training epochs")
    batch: int = _training(8, metavar="N", help="frames per step")
    imgsz: int | None = _training(None, metavar="PX", help="square input (default: as trained)")
    device: str = _training("", help="cpu, 0, or 0,1 (default: the GPU if there is one)")
    seed: int = _training(0, metavar="N", help="of order and augmentation")
    precision: str = _export("fp32", choices=PRECISIONS, help="of the exported file")
    parent: str = _export("", metavar="ONNX", help="the deployed file, for the lineage")
    ancestor: str = _input(
        default="",
        metavar="FILE",
        help="first model of the lineage (.pt or .onnx), which the base is compared with, too "
        "(default: found beside --parent)",
    )
    overrides: Mapping[str, object] = _training(
        factory=dict,
        flag="--set",
        help="a training setting of Ultralytics, such as lr0=0.01; repeatable",
    )
