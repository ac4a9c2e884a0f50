# SPDX-License-Identifier: AGPL-3.0-or-later
"""Models of others: known layers with plain arguments, limited weights and layer outputs."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Mapping
from copy import deepcopy
from itertools import chain
from typing import Any, cast

import torch
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from ultralytics.nn import modules, tasks
from ultralytics.nn.modules.conv import Conv

from drone_kd.core.model_spec import MAX_CLASSES
from drone_kd.text import one_line
from drone_kd_training.isolation import DOWNLOADS, may_download

# Arguments that are text: settings of the yaml, and options of torch's layers.
_WORDS = {
    "nc", "kpt_shape", "nearest", "nearest-exact", "linear", "bilinear", "bicubic", "area",
    "zeros", "reflect", "replicate", "circular", "same", "valid", "none", "tanh",
}  # fmt: skip
_MAX_NUMBER = 4096
_MAX_LAYERS = 2_000
_MAX_ACTIVATION = 1_000
# The largest detector of Ultralytics has 140 million.
MAX_WEIGHTS = 250_000_000
# Values of an image of `_SIDE` px: of a layer, and of all. YOLOv8x has 1.3 and 150 million.
MAX_OUTPUT, _MAX_OUTPUTS = 16_000_000, 2_000_000_000
# As Ultralytics builds a detector, which runs it once.
_SIDE = 256


class TooLargeError(ValueError):
    """Model with a layer, or with layers, whose output is larger than that of any detector."""


def check_architecture(content: Mapping[str, Any], run: bool = True) -> None:
    """Check the content of a model yaml before Ultralytics builds it.

    ``run``: check the outputs of its layers, which take nothing but an image and each other.

    Raises:
        ValueError: another layer than Ultralytics', torch's or torchvision's; an argument that is
            no plain value; a size that no detector has.
        Exception: of other types, where Ultralytics cannot build it.
    """
    for key in ("nc", "ch", "channels", "reg_max", "depth_multiple", "width_multiple"):
        if content.get(key) is not None:
            _check_number(key, content[key], MAX_CLASSES)
    scales = content.get("scales") or {}
    for value in chain(*scales.values()):
        _check_number("scales", value, float("inf"))
    layers = 0.0
    depth = max([1, content.get("depth_multiple") or 1, *(depth for depth, *_ in scales.values())])
    for i, row in enumerate([*content["backbone"], *content["head"]]):
        _check_layer(i, row)
        layers += row[1] * depth
        if layers > _MAX_LAYERS:
            raise ValueError(f"expected at most {_MAX_LAYERS} layers, got more")
    model = deepcopy(dict(content))
    model["scale"] = content.get("scale") or next(iter(scales), None)
    default = Conv.default_act
    try:
        with torch.device("meta"):  # takes no memory
            if content.get("activation"):  # also where checkpoints are trusted, which evaluates it
                _check_activation(content["activation"])
            built, _ = tasks.parse_model(model, ch=3, verbose=False)
            _check_number_of_weights(built)
            if run:
                _run(built, content.get("channels") or content.get("ch") or 3)
    finally:
        Conv.default_act = default


def check_outputs(model: nn.Module) -> None:
    """Check the size of what the layers of a model that was loaded return, without its weights.

    Raises TooLargeError. A layer that fails otherwise is left to the first inference.
    """
    _check_number_of_weights(model)
    tensors = chain(model.parameters(), model.buffers())
    on_meta = {id(tensor): tensor.detach().to("meta") for tensor in tensors}
    for parameter in model.parameters():
        on_meta[id(parameter)] = nn.Parameter(on_meta[id(parameter)], requires_grad=False)
    try:
        copy = deepcopy(model, on_meta)
        channels = next(p.shape[1] for p in copy.parameters() if p.ndim == 4)
        with torch.device("meta"), _LimitedOutputs(), torch.no_grad():
            copy(torch.zeros(1, channels, _SIDE, _SIDE))
    except TooLargeError:
        raise
    except Exception:  # noqa: S110 - as many as a damaged model has ways to fail
        pass


def _check_number_of_weights(model: nn.Module) -> None:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > MAX_WEIGHTS:
        raise TooLargeError(f"expected at most {MAX_WEIGHTS:.1e} weights, got {parameters:.1e}")


def _run(layers: nn.Sequential, channels: int) -> None:
    """Run the layers of a model yaml on an image without data, as Ultralytics does."""
    outputs: list[Any] = [torch.zeros(1, channels, _SIDE, _SIDE)]
    layers.eval()
    layers[-1].training = True  # a head then returns its outputs as they are
    with _LimitedOutputs():
        for layer in cast(Any, layers):
            one = isinstance(layer.f, int)
            # The image is the first of the outputs; -1 is the layer before.
            inputs = [outputs[n if n < 0 else n + 1] for n in ([layer.f] if one else layer.f)]
            outputs.append(layer(inputs[0] if one else inputs))


class _LimitedOutputs(TorchDispatchMode):
    """Ends a computation whose tensors become too large; TooLargeError."""

    def __init__(self) -> None:
        super().__init__()
        self._total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute, and count what it returns."""
        result = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self._total += sum(sizes)
        if max(sizes, default=0) > MAX_OUTPUT or self._total > _MAX_OUTPUTS:
            raise TooLargeError(f"expected at most {MAX_OUTPUT:.1e} values of a layer, got more")
        return result


def _check_activation(text: Any) -> None:
    """Check the arguments of an activation as those of a layer, and construct it."""
    if type(text) is not str or len(text) > _MAX_ACTIVATION:
        raise ValueError("expected an activation such as nn.SiLU()")
    with contextlib.suppress(SyntaxError, RecursionError, MemoryError):
        for node in ast.walk(ast.parse(text.strip(), mode="eval")):
            if isinstance(node, ast.Constant) and not isinstance(node.value, bool):
                _check_argument("activation", node.value)
    tasks._SafeLoad.activation(text)


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
    _check_argument(f"layer {number}", arguments)


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


def _check_argument(where: str, value: Any) -> None:
    if isinstance(value, str):
        if value in _WORDS:
            return
        with contextlib.suppress(ValueError, SyntaxError, RecursionError):
            value = ast.literal_eval(value) if len(value) <= 60 else value
    if isinstance(value, (list, tuple)):
        for each in value:
            _check_argument(where, each)
    elif value is not None:
        _check_number(where, value, _MAX_NUMBER)


def _check_number(where: str, value: Any, limit: float) -> None:
    # Not a number is not within any limit.
    if not isinstance(value, (int, float)) or not abs(value) <= limit:
        got = one_line(value, 60)
        raise ValueError(f"{where}: expected a number up to {limit:g}, got {got}")
