# SPDX-License-Identifier: AGPL-3.0-or-later
"""Weight interpolation between a fine-tuned model and the model it started from (WiSE-FT)."""

from __future__ import annotations

from pathlib import Path

import torch

from drone_kd_training.models.checkpoints import class_names, load_model
from drone_kd_training.models.published import save_checkpoint
from drone_kd_training.models.torch_backend import trained_imgsz


def interpolate_weights(
    trained: str | Path, start: str | Path, alpha: float, output: Path
) -> None:
    """Write a .pt whose weights and batch-norm statistics lie between two models', in float32.

    WiSE-FT: Wortsman et al. 2022, arXiv:2109.01903. It reduces forgetting. ``trained`` was
    fine-tuned from ``start``, which has its classes by the same names, and perhaps others.
    ``alpha``: share of ``start`` in the result, in [0, 1]. Raises UnusableModelError if one cannot
    be loaded.
    """
    model, before = load_model(str(trained))[0], load_model(str(start))[0]
    rows = [class_names(before).index(name) for name in class_names(model)]
    old, mixed = before.state_dict(), {}
    for name, new in model.state_dict().items():
        own = old[name] if old[name].shape == new.shape else old[name][rows]
        mixed[name] = torch.lerp(new, own, alpha) if new.is_floating_point() else new
    model.load_state_dict(mixed)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint({"model": model, "train_args": {"imgsz": trained_imgsz(model)}}, output)
