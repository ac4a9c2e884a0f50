# SPDX-License-Identifier: AGPL-3.0-or-later
"""Checkpoints that are given to others: nothing in them names this machine or its user."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from ultralytics.utils.torch_utils import strip_optimizer

from drone_kd.files import atomic_file
from drone_kd.text import one_line

# Settings of Ultralytics that name the folder of a run.
_FOLDER = frozenset({"project", "name", "save_dir"})


def without_folders(value: Any, known: dict[int, Any] | None = None) -> Any:
    """Return settings without the run's folder; of another path or URL, the last part.

    ``known``: lists done before, by id: those of the same lists stand for any number of values.
    """
    known = {} if known is None else known
    if isinstance(value, SimpleNamespace):
        return type(value)(**without_folders(vars(value), known))
    if isinstance(value, Mapping):
        return {k: None if k in _FOLDER else without_folders(v, known) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        if id(value) not in known:
            known[id(value)] = type(value)(without_folders(each, known) for each in value)
        return known[id(value)]
    if isinstance(value, (str, PurePosixPath, PureWindowsPath)):
        return PureWindowsPath(str(value)).name or PurePosixPath(str(value)).name
    return value


def hide_folders(model: nn.Module) -> None:
    """Reduce each path that Ultralytics stores with a model to its last part."""
    for name in ("args", "yaml", "pt_path"):
        if hasattr(model, name):
            setattr(model, name, without_folders(getattr(model, name)))


def save_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint, whole or not at all, without the folders and the git remote."""
    hide_folders(checkpoint["model"])
    settings = without_folders(checkpoint.get("train_args", {}))
    with atomic_file(path) as temporary:
        torch.save({**checkpoint, "train_args": settings, "git": None}, temporary)


def finish_checkpoint(path: Path) -> None:
    """Reduce the checkpoint of a training to the model in half precision, and how it was trained.

    Raises ValueError if it is no checkpoint, or may run code.
    """
    # Ultralytics writes the file before it returns the content.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        checkpoint = strip_optimizer(path, s=str(Path(folder, path.name)))
    if not checkpoint:
        raise ValueError(
            f"{one_line(path)} is no checkpoint of a training run: start the run anew"
        )
    save_checkpoint(checkpoint, path)
