"""The family tree of a model file, and how a child is entered into it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from drone_kd.core.model_spec import ModelSpec
from drone_kd.files import file_sha256
from drone_kd.lineage import Ancestor, Lineage

# Digits of a hash that people are shown.
_SHOWN = 12


def generations(model: Path) -> tuple[Ancestor, ...]:
    """Return a model file and its ancestors, most recent first.

    Raises:
        ModelError: the file cannot be used, or its lineage cannot be read.
    """
    from drone_kd.backends.onnx_runtime import read_metadata  # deferred: imported when used

    metadata = read_metadata(model)
    lineage = Lineage.from_metadata(metadata)
    digest = file_sha256(model)
    metrics = ModelSpec.from_metadata(metadata).metrics
    if lineage is None:
        return (Ancestor(sha256=digest, metrics=metrics),)
    itself = Ancestor(
        sha256=digest,
        metrics=metrics,
        date=lineage.date,
        command=lineage.command,
        data=lineage.data,
    )
    return itself, *lineage.ancestors


def descend(parent: Path, command: str, data: Mapping[str, str]) -> Lineage:
    """Return the lineage of a model that is made now.

    Args:
        parent: the .onnx that it was trained from.
        command: the command line that makes it.
        data: name of each set of data that it learns from to a SHA-256, 64 hex digits.

    Raises:
        ModelError: see `generations`; or the command or the data are not printable.
    """
    now = datetime.now(timezone.utc)
    return Lineage(
        date=f"{now:%Y-%m-%dT%H:%M:%SZ}", command=command, data=data, ancestors=generations(parent)
    )


def family_tree(model: Path) -> str:
    """Return the family tree as text: the model, then its parent and so on.

    Raises:
        ModelError: see `generations`.
    """
    youngest, *ancestors = generations(model)
    if not youngest.date:
        return f"{model} ({youngest.sha256[:_SHOWN]}) says nothing of its lineage"
    lines = _describe(youngest, "", "  ")
    for depth, ancestor in enumerate(ancestors):
        indent = "   " * depth
        lines += _describe(ancestor, f"{indent}└─ ", f"{indent}     ")
    return "\n".join(lines)


def _describe(model: Ancestor, first: str, further: str) -> list[str]:
    date = model.date or "no lineage"
    lines = [f"{first}{model.sha256[:_SHOWN]}  {date}  {_map(model.metrics)}"]
    if model.command:
        lines.append(f"{further}{model.command}")
    if model.data:
        hashes = ", ".join(f"{name} {digest[:_SHOWN]}" for name, digest in model.data.items())
        lines.append(f"{further}data: {hashes}")
    return lines


def _map(metrics: Mapping[str, float]) -> str:
    if "map50_95" not in metrics:
        return "mAP50-95 not measured"
    whole = metrics.get("map50_95_fp32")
    before = f" (in FP32 {100 * whole:.1f})" if whole is not None else ""
    return f"mAP50-95 {100 * metrics['map50_95']:.1f}{before}"
