# SPDX-License-Identifier: AGPL-3.0-or-later
"""Teacher and student checkpoints: loading with clear errors, cost, class matching."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import nn
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import DetectionModel, load_checkpoint, yaml_model_load
from ultralytics.utils import SETTINGS
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES
from ultralytics.utils.torch_utils import get_flops, get_num_params

from drone_kd_training.isolation import DOWNLOADS, TRUST, cut_off_ultralytics, may_download
from drone_kd_training.quiet import first_line

cut_off_ultralytics()

PACKAGED_MODELS = Path(__file__).parents[1] / "recipes"
_SHOWN_NAMES = 8
# What Ultralytics' loader raises for a file that is not one of its checkpoints.
_LOAD_ERRORS = (
    OSError, RuntimeError, EOFError, KeyError, TypeError, AttributeError, ModuleNotFoundError,
    pickle.UnpicklingError,
)  # fmt: skip
# What torch's safe loading says of an object that is no known model class.
_UNSAFE = re.compile(r"Unsupported (?:global|class)|unsafe getattr")


class UnusableModelError(ValueError):
    """Model that cannot be used; the message says what was expected, what came, what to do."""


@dataclass(frozen=True)
class ClassMatch:
    """Classes that student and teacher share, matched by name.

    ``pairs``: (student index, teacher index) of each shared class.
    """

    student_names: tuple[str, ...]
    teacher_names: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]

    def table(self) -> str:
        """Return one line per student class with the teacher's class, or "labels only"."""
        teacher = dict(self.pairs)
        lines = [f"{'student class':<24} teacher class"]
        for index, name in enumerate(self.student_names):
            found = "- (labels only)"
            if index in teacher:
                found = f"{self.teacher_names[teacher[index]]} ({teacher[index]})"
            lines.append(f"{f'{name} ({index})':<24} {found}")
        unused = [n for i, n in enumerate(self.teacher_names) if i not in teacher.values()]
        if unused:
            more = len(unused) - _SHOWN_NAMES
            shown = ", ".join(unused[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
            lines.append(f"teacher classes not used: {shown}")
        return "\n".join(lines)


def match_classes(student_names: tuple[str, ...], teacher_names: tuple[str, ...]) -> ClassMatch:
    """Match classes by name, ignoring case and surrounding space.

    Raises UnusableModelError if there is no class in common.
    """
    where = {name.strip().lower(): i for i, name in enumerate(teacher_names)}
    keys = [name.strip().lower() for name in student_names]
    pairs = tuple((i, where[key]) for i, key in enumerate(keys) if key in where)
    if not pairs:
        raise UnusableModelError(
            f"teacher and data have no class in common: the data has {list(student_names)}, the "
            f"teacher {list(teacher_names)[:12]}; train the teacher on this data first (distill "
            "--teacher none --student TEACHER), or rename the classes in data.yaml"
        )
    return ClassMatch(tuple(student_names), tuple(teacher_names), pairs)


def resolve_model(name: str) -> str:
    """Return the path of a model file, or the name of a yaml of this project or Ultralytics.

    The name of a released checkpoint is returned as it is if downloads are allowed: Ultralytics
    fetches it. Raises UnusableModelError if the file does not exist, or is neither a .pt nor a
    model yaml.
    """
    path = Path(name)
    if path.suffix not in {".pt", ".yaml", ".yml"}:
        raise UnusableModelError(f"expected a checkpoint (.pt) or a model yaml, got {name!r}")
    if path.is_file():
        if path.suffix != ".pt" and not {"backbone", "head"} <= set(yaml_model_load(path)):
            raise UnusableModelError(
                f"{name} is not a model yaml: expected keys backbone and head"
            )
        return str(path)
    if (PACKAGED_MODELS / path.name).is_file() and path.parent == Path():
        return str(PACKAGED_MODELS / path.name)
    if path.suffix == ".pt":
        return _released(name)
    try:
        yaml_model_load(name)
    except Exception as error:  # the loader raises many types for "not found"
        raise UnusableModelError(f"no model yaml called {name}: {first_line(error)}") from error
    return name


def _released(name: str) -> str:
    """Return the path of a checkpoint that Ultralytics has downloaded before, or may download."""
    hint = ""
    if name in GITHUB_ASSETS_NAMES:
        stored = Path(SETTINGS["weights_dir"], name)
        if stored.is_file():
            return str(stored)
        if may_download():
            return name
        hint = f": download it, or set {DOWNLOADS}=1 to let Ultralytics do so"
    raise UnusableModelError(f"no checkpoint at {name}{hint}")


def load_model(name: str, also: tuple[str, ...] = ()) -> tuple[DetectionModel, dict]:
    """Load a detector in float32 and evaluation mode; ``name``: see `resolve_model`.

    ``also``: names of other heads that are accepted beside Detect. Returns the model and its
    checkpoint's dictionary, which is empty for a yaml. Raises UnusableModelError if it is no
    checkpoint, or a model with another head.
    """
    source = resolve_model(name)
    checkpoint: dict = {}
    if source.endswith(".pt"):
        try:
            model, checkpoint = load_checkpoint(source)
        except _LOAD_ERRORS as error:
            if _UNSAFE.search(str(error.__cause__)):
                raise UnusableModelError(
                    f"{name} holds objects that may run code on this machine; set {TRUST}=1 to "
                    "load it, if you trust whoever made it"
                ) from error
            raise UnusableModelError(
                f"{name} is not an Ultralytics checkpoint: {first_line(error)}"
            ) from error
    else:
        try:
            model = DetectionModel(source, verbose=False).eval()
        except TypeError as error:  # an activation that is an expression
            raise UnusableModelError(f"{name}: {first_line(error)}") from error
    layers = getattr(model, "model", None)
    head = layers[-1] if isinstance(layers, nn.Sequential) else model
    if type(head) is not Detect and type(head).__name__ not in also:
        raise UnusableModelError(
            f"{name} must be a detector with a Detect head, found {type(head).__name__}"
        )
    return model, checkpoint


def detect_head(model: nn.Module) -> Detect:
    """Return the detection head: the last layer of an Ultralytics detector."""
    return cast(Detect, cast(nn.Sequential, model.model)[-1])


def class_names(model: nn.Module) -> tuple[str, ...]:
    """Return the class names of an Ultralytics model in the order of their index."""
    names = cast(Mapping[int, object], model.names)
    return tuple(str(names[i]) for i in range(len(names)))


def cost(model: DetectionModel, imgsz: int) -> dict[str, float]:
    """Return the number of parameters and the GFLOPs of one square frame of ``imgsz`` pixels."""
    gflops = round(float(get_flops(model, imgsz)), 3)
    return {"parameters": int(get_num_params(model)), "gflops": gflops}
