# SPDX-License-Identifier: AGPL-3.0-or-later
"""Models of others: known layers with plain arguments, limited weights and layer outputs."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator, Mapping
from copy import deepcopy
from itertools import chain
from typing import Any, cast

import torch
import torchvision
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from ultralytics.nn import modules, tasks
from ultralytics.nn.modules.conv import Conv
from ultralytics.utils.torch_utils import strip_qat

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
_MAX_ARGUMENTS = 1_000
# Modules of a model, one counted wherever it is used; YOLOv9e has 1,500.
MAX_MODULES = 10_000
_MAX_ACTIVATION = 1_000
# The largest detector of Ultralytics has 140 million.
MAX_WEIGHTS = 250_000_000
# Values of an image of `_SIDE` px: of a layer, and of all. YOLOv8x has 1.3 and 150 million.
MAX_OUTPUT, _MAX_OUTPUTS = 16_000_000, 2_000_000_000
# Operations and calls of modules for an image; YOLOv9e needs 3,000.
_MAX_STEPS = 100_000
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
    rows, layers = [*content["backbone"], *content["head"]], 0.0
    if len(rows) > _MAX_LAYERS:
        raise ValueError(f"expected at most {_MAX_LAYERS} layers, got more")
    depth = max([1, content.get("depth_multiple") or 1, *(depth for depth, *_ in scales.values())])
    for i, row in enumerate(rows):
        _check_layer(i, row)
        layers += max(row[1], 1) * depth
        if layers > _MAX_LAYERS:
            raise ValueError(f"expected at most {_MAX_LAYERS} layers, got more")
    model = deepcopy(dict(content))
    model["scale"] = content.get("scale") or next(iter(scales), None)
    default = Conv.default_act
    try:
        with torch.device("meta"), _limited_modules():  # takes no memory
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

    Raises TooLargeError, or what a layer raises that fails.
    """
    _check_number_of_weights(model)
    tensors = chain(model.parameters(), model.buffers())
    on_meta = {id(tensor): tensor.detach().to("meta") for tensor in tensors}
    for parameter in model.parameters():
        on_meta[id(parameter)] = nn.Parameter(on_meta[id(parameter)], requires_grad=False)
    copy = deepcopy(model, on_meta)
    strip_qat(copy)  # quantizers need values
    channels = next((p.shape[1] for p in copy.parameters() if p.ndim == 4), 3)
    with torch.device("meta"), _LimitedOutputs(), torch.no_grad():
        copy(torch.zeros(1, channels, _SIDE, _SIDE))


@contextlib.contextmanager
def _limited_modules() -> Iterator[None]:
    """End the construction of a model that has too many modules; TooLargeError."""
    number = 0

    def count(*_: Any) -> None:
        nonlocal number
        number += 1
        if number > MAX_MODULES:
            raise TooLargeError(f"expected at most {MAX_MODULES} modules, got more")

    hook = torch_module.register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


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
    """Ends a computation that takes too long, or whose tensors become too large; TooLargeError."""

    def __init__(self) -> None:
        super().__init__()
        self._total = self._steps = 0

    def __enter__(self) -> Any:
        self._hook = torch_module.register_module_forward_pre_hook(self._count)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._hook.remove()
        super().__exit__(*error)

    def _count(self, *_: Any) -> None:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise TooLargeError(f"expected at most {_MAX_STEPS} steps for an image, got more")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute, and count what it returns."""
        self._count()
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
    inputs = inputs if isinstance(inputs, (list, tuple)) else [inputs]
    if len(inputs) > _MAX_LAYERS:
        raise ValueError(f"layer {number}: expected at most {_MAX_LAYERS} inputs, got more")
    for value in (*inputs, repeats):
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
    # Counted: lists of the same lists stand for any number of values.
    left, number = [value], 0
    while left:
        value = left.pop()
        number += 1
        if isinstance(value, str):
            if value in _WORDS:
                continue
            with contextlib.suppress(ValueError, SyntaxError, RecursionError):
                value = ast.literal_eval(value) if len(value) <= 60 else value
        if isinstance(value, (list, tuple)):
            if number + len(left) + len(value) > _MAX_ARGUMENTS:
                raise ValueError(f"{where}: expected at most {_MAX_ARGUMENTS} arguments, got more")
            left += value
        elif value is not None:
            _check_number(where, value, _MAX_NUMBER)


def _check_number(where: str, value: Any, limit: float) -> None:
    # Not a number is not within any limit.
    if not isinstance(value, (int, float)) or not abs(value) <= limit:
        got = one_line(value, 60)
        raise ValueError(f"{where}: expected a number up to {limit:g}, got {got}")
