# SPDX-License-Identifier: AGPL-3.0-or-later
"""Model yamls of others: known layers with plain arguments, and of a limited size."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Mapping
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
import torchvision
from torch import nn
from ultralytics.nn import modules, tasks

from drone_kd.text import one_line
from drone_kd_training.isolation import DOWNLOADS, may_download

# Arguments that are text: settings of the yaml, and options of torch's layers.
_WORDS = {
    "nc", "kpt_shape", "nearest", "nearest-exact", "linear", "bilinear", "bicubic", "area",
    "zeros", "reflect", "replicate", "circular", "same", "valid", "none", "tanh",
}  # fmt: skip
_MAX_NUMBER = 4096
_MAX_CLASSES = 10_000
_MAX_LAYERS = 2_000
# The largest detector of Ultralytics has 140 million.
_MAX_PARAMETERS = 250_000_000


def check_architecture(content: Mapping[str, Any]) -> None:
    """Check the content of a model yaml before Ultralytics builds it.

    Raises:
        ValueError: another layer than Ultralytics', torch's or torchvision's; an argument that is
            no plain value; a size that no detector has.
        Exception: of other types, where Ultralytics cannot build it.
    """
    for key in ("nc", "ch", "channels", "reg_max", "depth_multiple", "width_multiple"):
        if content.get(key) is not None:
            _check_number(key, content[key], _MAX_CLASSES)
    scales = content.get("scales") or {}
    for value in chain(*scales.values()):
        _check_number("scales", value, float("inf"))
    if content.get("activation"):  # also where checkpoints are trusted, which evaluates it
        tasks._SafeLoad.activation(content["activation"])
    layers = 0.0
    depth = max([1, content.get("depth_multiple") or 1, *(depth for depth, *_ in scales.values())])
    for i, row in enumerate([*content["backbone"], *content["head"]]):
        _check_layer(i, row)
        layers += row[1] * depth
        if layers > _MAX_LAYERS:
            raise ValueError(f"expected at most {_MAX_LAYERS} layers, got more")
    model = deepcopy(dict(content))
    model["scale"] = content.get("scale") or next(iter(scales), None)
    with torch.device("meta"):  # takes no memory
        built, _ = tasks.parse_model(model, ch=3, verbose=False)
    parameters = sum(parameter.numel() for parameter in built.parameters())
    if parameters > _MAX_PARAMETERS:
        raise ValueError(f"expected at most {_MAX_PARAMETERS:.1e} weights, got {parameters:.1e}")


def _check_layer(number: int, row: Any) -> None:
    if not isinstance(row, (list, tuple)) or len(row) != 4:
        got = one_line(row, 60)
        raise ValueError(f"layer {number}: expected [from, number, layer, arguments], got {got}")
    inputs, repeats, name, arguments = row
    if not isinstance(name, str) or not _is_layer(name):
        allowed = f" ({DOWNLOADS}=1 allows it: it may download)" if name == "TorchVision" else ""
        got = f"{one_line(name, 60)}{allowed}"
        raise ValueError(f"layer {number}: expected a layer of Ultralytics or torch, got {got}")
    for value in chain(inputs if isinstance(inputs, (list, tuple)) else [inputs], [repeats]):
        _check_number(f"layer {number}", value, _MAX_LAYERS)
    _check_argument(number, arguments)


def _is_layer(name: str) -> bool:
    """Return whether a name of a model yaml is a layer; one that downloads is only if allowed."""
    for prefix, package in (("nn.", nn), ("torchvision.ops.", torchvision.ops)):
        if name.startswith(prefix):
            found = getattr(package, name.removeprefix(prefix), None)
            break
    else:
        found = getattr(modules, name, None) if name in modules.__all__ else None
    if name == "TorchVision" and not may_download():
        return False
    return isinstance(found, type) and issubclass(found, nn.Module)


def _check_argument(number: int, value: Any) -> None:
    if isinstance(value, str):
        if value in _WORDS:
            return
        with contextlib.suppress(ValueError, SyntaxError, RecursionError):
            value = ast.literal_eval(value) if len(value) <= 60 else value
    if isinstance(value, (list, tuple)):
        for each in value:
            _check_argument(number, each)
    elif value is not None:
        _check_number(f"layer {number}", value, _MAX_NUMBER)


def _check_number(where: str, value: Any, limit: float) -> None:
    # Not a number is not within any limit.
    if not isinstance(value, (int, float)) or not abs(value) <= limit:
        got = one_line(value, 60)
        raise ValueError(f"{where}: expected a number up to {limit:g}, got {got}")
