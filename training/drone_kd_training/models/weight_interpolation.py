# SPDX-License-Identifier: AGPL-3.0-or-later
"""Weights between two models: what a training did not teach is not forgotten."""

from __future__ import annotations

from pathlib import Path

import torch

from drone_kd.files import atomic_file
from drone_kd_training.models.checkpoints import class_names, load_model
from drone_kd_training.models.torch_backend import trained_imgsz


def blend(trained: str | Path, start: str | Path, share: float, output: Path) -> None:
    """Write a checkpoint with the mean of two models' weights and batch norms' statistics.

    WiSE-FT: Wortsman et al. 2022, arXiv:2109.01903.

    Args:
        trained: what training made of ``start``; its classes are those of the result.
        start: knows these classes by the same names, and may know others.
        share: of ``start``, in [0, 1].
        output: a new .pt, in float32.
    """
    model, before = load_model(str(trained))[0], load_model(str(start))[0]
    rows = [class_names(before).index(name) for name in class_names(model)]
    old, mixed = before.state_dict(), {}
    for name, new in model.state_dict().items():
        own = old[name] if old[name].shape == new.shape else old[name][rows]
        mixed[name] = torch.lerp(new, own, share) if new.is_floating_point() else new
    model.load_state_dict(mixed)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(output) as temporary:
        torch.save({"model": model, "train_args": {"imgsz": trained_imgsz(model)}}, temporary)
