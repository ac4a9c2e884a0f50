# SPDX-License-Identifier: AGPL-3.0-or-later
"""Teacher and student checkpoints: loading with clear errors, cost, class matching."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import DetectionModel, load_checkpoint, yaml_model_load
from ultralytics.utils import SETTINGS
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES
from ultralytics.utils.torch_utils import get_flops, get_num_params

from drone_kd.core.model_spec import MAX_CLASSES, class_name_problem
from drone_kd.parsing import ParseError, read_yaml
from drone_kd.text import one_line
from drone_kd_training.data.names import stripped
from drone_kd_training.isolation import (
    DOWNLOADS,
    TRUST,
    cut_off_ultralytics,
    is_trusted,
    may_download,
)
from drone_kd_training.models.architecture import TooLargeError, check_architecture, check_outputs
from drone_kd_training.models.safe_loading import OldFormatError, guard_loading
from drone_kd_training.quiet import first_line

cut_off_ultralytics()
guard_loading()

PACKAGED_MODELS = Path(__file__).parents[1] / "recipes"
_SHOWN_NAMES = 8
# What torch's safe loading says of an object that is no known model class.
_UNSAFE = re.compile(r"Unsupported (?:global|class)|unsafe getattr")
_REFUSED = re.compile(r"Unsupported (?:global: GLOBAL|class:) ([\w.]{1,200}) w(?:as|ould)")
# What is no name of a model yaml: an absolute path, a pattern or a URL.
_NO_NAME = re.compile(r"^[/~]|[*?\[]|:/")
# What Ultralytics recommends: its own commands and models.
_ADVICE = re.compile(r"(?:^|\s)(?:Use an official|Train a new model|Recommended fixes)")


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
        raise UnusableModelError(
            f"expected a checkpoint (.pt) or a model yaml, got {one_line(repr(name))}"
        )
    try:
        exists = path.is_file()
    except OSError as error:  # too long, or in a folder that may not be searched
        raise UnusableModelError(f"no model at {one_line(name)}: {error.strerror}") from error
    if exists:
        if path.suffix != ".pt":
            _read_architecture(str(path))
        return str(path)
    if (PACKAGED_MODELS / path.name).is_file() and path.parent == Path():
        return str(PACKAGED_MODELS / path.name)
    if path.suffix == ".pt":
        return _released(name)
    _read_architecture(name)
    return name


def _read_architecture(name: str) -> dict:
    """Return the checked content of a model yaml with its scale, as Ultralytics reads it.

    Raises UnusableModelError if there is none, or it is no description of a model.
    """
    try:
        given = read_yaml(name) if Path(name).is_file() else None
        if given is not None and not _is_model(given):
            raise UnusableModelError("expected keys backbone and head of a model yaml")
        if given is None and _NO_NAME.search(name):  # Ultralytics searches folders, and online
            raise FileNotFoundError("no such file")
        content: dict = yaml_model_load(name)
        # Ultralytics takes "yolov5u.yaml" for "yolov5.yaml", for example.
        if given is not None and given != {k: v for k, v in content.items() if k in given}:
            raise UnusableModelError("Ultralytics reads another file for this name; rename it")
    except ParseError as error:
        raise UnusableModelError(str(error)) from error
    except UnusableModelError as error:
        raise UnusableModelError(f"{one_line(name)}: {error}") from error
    except Exception as error:  # the loader raises many types for "not found"
        raise UnusableModelError(
            f"no model yaml called {one_line(name)}: {one_line(first_line(error))}"
        ) from error
    try:
        check_architecture(content)
    except Exception as error:  # as many as a wrong description has ways to fail
        raise UnusableModelError(f"{one_line(name)}: {_reason(error)}") from error
    return content


def _is_model(content: object) -> bool:
    if not isinstance(content, dict):
        return False
    return all(isinstance(content.get(key), list) for key in ("backbone", "head"))


def _reason(error: BaseException) -> str:
    text = _ADVICE.split(first_line(error).removeprefix("ERROR ❌️ "))[0].rstrip(" .")
    text = one_line(text)
    return f"{type(error).__name__}: {text}" if isinstance(error, LookupError) else text


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
    raise UnusableModelError(f"no checkpoint at {one_line(name)}{hint}")


def load_model(name: str, also: tuple[str, ...] = ()) -> tuple[DetectionModel, dict]:
    """Load a detector in float32 and evaluation mode; ``name``: see `resolve_model`.

    ``also``: names of other heads that are accepted beside Detect. Returns the model and its
    checkpoint's dictionary, which is empty for a yaml. Raises UnusableModelError if it is no
    checkpoint, or one that may run code, or a model with another head.
    """
    source = resolve_model(name)
    if not source.endswith(".pt"):
        try:
            model = DetectionModel(_read_architecture(source), verbose=False).eval()
        except UnusableModelError:
            raise
        except Exception as error:  # as many as a wrong description has ways to fail
            raise UnusableModelError(f"{one_line(name)}: {_reason(error)}") from error
        _check_detector(name, model, also)
        return model, {}
    model, checkpoint = _open_checkpoint(name, source)
    try:
        _check_detector(name, model, also)
        _check_runs(name, model)
        content: Any = getattr(model, "yaml", None)
        if content is not None:  # a training builds the model anew from it
            if not _is_model(content):
                raise UnusableModelError(
                    f"{one_line(name)}: expected a description of its layers, got "
                    f"{one_line(content, 60)}"
                )
            # Others than Detect may need a text.
            check_architecture(content, run=type(detect_head(model)) is Detect)
    except UnusableModelError:
        raise
    except Exception as error:  # an attribute of another type than a model has
        raise UnusableModelError(f"{one_line(name)}: {_reason(error)}") from error
    return model, checkpoint


def check_weights(name: str) -> None:
    """Check a model whose weights a student starts from, with any head; see `load_model`."""
    source = resolve_model(name)
    if source.endswith(".pt"):
        _check_runs(name, _open_checkpoint(name, source)[0], may_fail=True)
    else:
        _read_architecture(source)


def _open_checkpoint(name: str, source: str) -> tuple[DetectionModel, dict]:
    """Return the model of a checkpoint and its dictionary; see `load_model`."""
    try:
        model, checkpoint = load_checkpoint(source)
    except Exception as error:  # a damaged or hostile file fails in many ways
        raise UnusableModelError(f"{one_line(name)} {_refusal(error)}") from error
    return model, checkpoint


def _check_runs(name: str, model: nn.Module, may_fail: bool = False) -> None:
    """Refuse a model whose layers return too much, or fail; those that are trusted may fail."""
    try:
        check_outputs(model)
    except TooLargeError as error:
        raise UnusableModelError(f"{one_line(name)}: {error}") from error
    except Exception as error:  # as many as a damaged model has ways to fail
        if not (may_fail or is_trusted()):
            raise UnusableModelError(
                f"{one_line(name)}: the model cannot run, a layer of its checkpoint is damaged: "
                f"{_reason(error)}"
            ) from error


def _refusal(error: Exception) -> str:
    """Return what is wrong with a checkpoint that did not load, and what to do."""
    text = f"{error} {error.__cause__}"
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if isinstance(error, OldFormatError):
        held = "is in the format of torch before 1.6, a plain pickle, which"
    elif not missing and not _UNSAFE.search(text):
        return f"is not an Ultralytics checkpoint: {_reason(error)}"
    else:
        found = _REFUSED.search(text)
        refused = found[1] if found else ""
        if missing := missing or _missing_module(refused):
            return f"needs {one_line(missing, 100)}, which is not installed: {_remedy(missing)}"
        held = f"holds {one_line(refused, 100) or 'an object'}, which"
    remedy = f"if you trust whoever made it, load it with --trust or {TRUST}=1"
    if isinstance(error, OldFormatError):
        remedy += ", or load and save it with the version that it came from"
    return f"{held} may run code on this machine; {remedy}"


def _missing_module(name: str) -> str:
    """Return the module or class of a dotted name if it does not exist here, without an import."""
    module, _, kind = name.rpartition(".")
    if (loaded := sys.modules.get(module)) is not None:
        return "" if kind in vars(loaded) else name
    root = module.partition(".")[0]
    # For others than Ultralytics, looking below the root would import it.
    searched = module if root == "ultralytics" else root
    try:
        spec = importlib.util.find_spec(searched) if root else None
    except (ImportError, ValueError):
        spec = None
    # A folder of that name in the search path, without a package in it, has no origin.
    return module if spec is None or spec.origin is None else ""


def _remedy(missing: str) -> str:
    root = missing.partition(".")[0]
    if root == "models":
        return "it was made by the YOLOv5 repository, whose checkpoints Ultralytics cannot load"
    if root == "ultralytics":
        return "install the version of Ultralytics that made the checkpoint"
    return "install it, or save the checkpoint without it where it was made"


def _check_detector(name: str, model: nn.Module, also: tuple[str, ...]) -> None:
    """Refuse another head, and class names that cannot be shown; see `load_model`."""
    layers = getattr(model, "model", None)
    head = layers[-1] if isinstance(layers, nn.Sequential) else model
    if type(head) is not Detect and type(head).__name__ not in also:
        raise UnusableModelError(
            f"{one_line(name)} must be a detector with a Detect head, found {type(head).__name__}"
        )
    names = cast(Any, model).names
    if isinstance(names, (list, tuple)):  # of old checkpoints
        names = dict(enumerate(names))
    count = cast(Any, head).nc
    if type(count) is not int or not 1 <= count <= MAX_CLASSES:
        raise UnusableModelError(
            f"{one_line(name)}: expected 1 to {MAX_CLASSES} classes, got {one_line(count, 60)}"
        )
    if not isinstance(names, Mapping) or set(names) != set(range(count)):
        raise UnusableModelError(
            f"{one_line(name)}: expected {count} class names, numbered from 0, got "
            f"{one_line(names)}"
        )
    for number in range(count):
        text = names[number]
        if problem := class_name_problem(text.strip() if isinstance(text, str) else text):
            raise UnusableModelError(
                f"{one_line(name)}: class {number}: {problem}; rename it in the checkpoint"
            )
    found = stripped([names[number] for number in range(count)], name)
    cast(Any, model).names = dict(enumerate(found))


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
