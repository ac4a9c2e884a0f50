# SPDX-License-Identifier: AGPL-3.0-or-later
"""Teacher and student models: loading with clear errors, what they cost, how their classes
match.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import DetectionModel, load_checkpoint, yaml_model_load
from ultralytics.utils.torch_utils import get_flops, get_num_params

PACKAGED_MODELS = Path(__file__).parents[1] / "recipes"


class UnusableModelError(ValueError):
    """A model that cannot be used; the message says what was expected, what came and what to
    do.
    """


@dataclass(frozen=True)
class ClassMatch:
    """Which student class is which teacher class, by name; ``pairs`` holds (student index, teacher
    index).
    """

    student_names: tuple[str, ...]
    teacher_names: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]

    def table(self) -> str:
        """One line per class of the student: what the teacher calls it, or that it is learnt from
        labels alone.
        """
        teacher = dict(self.pairs)
        lines = [f"{'student class':<24} teacher class"]
        for index, name in enumerate(self.student_names):
            found = (
                f"{self.teacher_names[teacher[index]]} ({teacher[index]})"
                if index in teacher
                else None
            )
            lines.append(f"{f'{name} ({index})':<24} {found or '- (labels only)'}")
        unused = [n for i, n in enumerate(self.teacher_names) if i not in teacher.values()]
        if unused:
            shown = ", ".join(unused[:8]) + (
                f" and {len(unused) - 8} more" if len(unused) > 8 else ""
            )
            lines.append(f"teacher classes not used: {shown}")
        return "\n".join(lines)


def match_classes(student_names: tuple[str, ...], teacher_names: tuple[str, ...]) -> ClassMatch:
    """Match classes by name, ignoring case and surrounding space.

    Raises:
        UnusableModelError: not one class in common.
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
    """The path of a model file, or the name of a yaml that this project or Ultralytics has.

    Raises:
        UnusableModelError: a file that does not exist, or neither .pt nor .yaml.
    """
    path = Path(name)
    if path.suffix not in {".pt", ".yaml", ".yml"}:
        raise UnusableModelError(f"a model is a checkpoint (.pt) or a model yaml, not {name!r}")
    if path.is_file():
        if path.suffix != ".pt" and not {"backbone", "head"} <= set(yaml_model_load(path)):
            raise UnusableModelError(f"{name} is no model yaml: expected keys backbone and head")
        return str(path)
    if (PACKAGED_MODELS / path.name).is_file() and path.parent == Path("."):
        return str(PACKAGED_MODELS / path.name)
    if path.suffix == ".pt":
        if path.parent == Path("."):
            return name  # a release's name: Ultralytics fetches it where there is a network
        raise UnusableModelError(f"no checkpoint at {name}")
    try:
        yaml_model_load(name)
    except Exception as error:  # the loader raises many types for "not found"
        raise UnusableModelError(f"no model yaml called {name}: {_first_line(error)}") from error
    return name


def load_model(name: str, also: tuple[str, ...] = ()) -> tuple[DetectionModel, dict]:
    """Load a detector in float32 and eval mode with its checkpoint dictionary (empty for a yaml).

    ``also``: names of other heads that are accepted beside Detect.

    Raises:
        UnusableModelError: not a checkpoint, or a model with another head.
    """
    source = resolve_model(name)
    if not source.endswith(".pt"):
        model = DetectionModel(source, verbose=False).eval()
        checkpoint: dict = {}
    else:
        try:
            model, checkpoint = load_checkpoint(source)
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, AttributeError,
        ModuleNotFoundError,
                pickle.UnpicklingError) as error:  # fmt: skip
            raise UnusableModelError(
                f"{name} is not an Ultralytics checkpoint: {_first_line(error)}"
            ) from error
    head = model.model[-1] if isinstance(getattr(model, "model", None), nn.Sequential) else None
    if type(head) is not Detect and type(head).__name__ not in also:
        found = type(head).__name__ if head is not None else type(model).__name__
        raise UnusableModelError(f"{name} must be a detector with a Detect head, found {found}")
    return model, checkpoint


def class_names(model: DetectionModel) -> tuple[str, ...]:
    """The class names of a model in the order of their index."""
    return tuple(str(model.names[i]) for i in range(len(model.names)))


def cost(model: DetectionModel, imgsz: int) -> dict[str, float]:
    """Number of parameters and GFLOPs of one square frame of ``imgsz`` pixels."""
    return {
        "parameters": int(get_num_params(model)),
        "gflops": round(float(get_flops(model, imgsz)), 3),
    }


def _first_line(error: BaseException) -> str:
    return next(
        (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
    )
