# SPDX-License-Identifier: AGPL-3.0-or-later
"""A Detect teacher's raw predictions for augmented frames, stored to be used again.

After Fast Knowledge Distillation (FKD, Shen & Xing, ECCV 2022, arXiv:2112.01528): a frame has a
fixed number of views, and the teacher runs once for each. Anchors with a score stay (`KEPT`), at
least the best one in a hundred (Dense Teacher, Zhou et al. ECCV 2022, arXiv:2207.02541); the rest
are background.

The name of the folder is a hash of the teacher, its input, the frames and the augmentation:
predictions of other ones are never mistaken for these.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from drone_kd.text import one_line
from drone_kd_training.data.folders import real_folder
from drone_kd_training.data.names import DataError
from drone_kd_training.distillation.train_loader import View
from drone_kd_training.models.safe_loading import read_plain, write_plain
from drone_kd_training.teachers.prediction_cache import file_hash

# Anchors with at least this score are stored.
KEPT = 0.02
# At least this share of all anchors is stored.
BEST_SHARE = 0.01
# Logit of the anchors that are not.
BACKGROUND_LOGIT = -10.0
# Incremented when the same settings give other predictions.
_VERSION = 1


class _Row(NamedTuple):
    """The stored anchors of a view: index (n,), class logits (n, C), raw boxes (n, 4R)."""

    anchors: Tensor
    scores: Tensor
    boxes: Tensor


class StoredViews:
    """Predictions by view, in memory and in files of a folder.

    Args:
        folder: of all such predictions; they are in a folder below it.
        made_by: what they depend on, as JSON can hold it.
    """

    def __init__(self, folder: Path, made_by: Mapping[str, object]) -> None:
        content = json.dumps({"version": _VERSION, **made_by}, sort_keys=True)
        self.folder = folder / hashlib.sha256(content.encode()).hexdigest()[:16]
        real_folder(self.folder)
        self._found: dict[View, _Row] = {}
        self._new: list[View] = []
        self._grids: list[tuple[int, int]] = []
        for path in sorted(self.folder.glob("*.pt")):
            self._read(path)

    def __len__(self) -> int:
        """Return the number of views."""
        return len(self._found)

    def knows(self, views: Iterable[View]) -> bool:
        """Return whether all views are there."""
        return all(view in self._found for view in views)

    def add(self, views: Iterable[View], raw: Mapping[str, Any]) -> None:
        """Add the raw predictions {boxes (B, 4R, N), scores (B, C, N), feats} for B views."""
        self._grids = [tuple(f.shape[-2:]) for f in raw["feats"]]
        best = raw["scores"].amax(dim=1)
        least = max(1, round(BEST_SHARE * best.shape[-1]))
        limit = best.topk(least, dim=-1).values[:, -1:].clamp(max=_logit(KEPT))
        for number, view in enumerate(views):
            if view in self._found:
                continue
            anchors = (best[number] >= limit[number]).nonzero().flatten()
            scores, boxes = (_half(raw[key][number, :, anchors].T) for key in ("scores", "boxes"))
            self._found[view] = _Row(anchors.cpu(), scores, boxes)
            self._new.append(view)

    def of(self, views: Iterable[View], device: torch.device) -> dict[str, Any]:
        """Return raw predictions as given to `add`, with features without channels."""
        rows = [self._found[view] for view in views]
        total = sum(h * w for h, w in self._grids)
        scores = torch.full((len(rows), total, rows[0].scores.shape[1]), BACKGROUND_LOGIT)
        boxes = torch.zeros(len(rows), total, rows[0].boxes.shape[1])
        for number, row in enumerate(rows):
            scores[number, row.anchors] = row.scores.float()
            boxes[number, row.anchors] = row.boxes.float()
        return {
            "scores": scores.to(device).transpose(1, 2),
            "boxes": boxes.to(device).transpose(1, 2),
            "feats": [torch.empty(len(rows), 0, h, w, device=device) for h, w in self._grids],
        }

    def write(self) -> None:
        """Write the new predictions to a file of their own."""
        if not self._new:
            return
        rows = [self._found[view] for view in self._new]
        content = {
            "views": torch.tensor(self._new),
            "grids": torch.tensor(self._grids),
            "counts": torch.tensor([len(row.anchors) for row in rows]),
            **{name: torch.cat([getattr(row, name) for row in rows]) for name in _Row._fields},
        }
        write_plain(self.folder / f"{uuid.uuid4().hex}.pt", content)
        self._new = []

    def _read(self, path: Path) -> None:
        try:
            self._add_tables(read_plain(path))
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            raise DataError(
                f"{one_line(path)}: expected a teacher's stored predictions; delete it"
            ) from None

    def _add_tables(self, tables: Mapping[str, Tensor]) -> None:
        """Add what `write` wrote; ValueError and others: it is something else."""
        grids = [(int(h), int(w)) for h, w in tables["grids"].tolist()]
        total, counts = sum(h * w for h, w in grids), tables["counts"]
        anchors, scores, boxes = (tables[name] for name in _Row._fields)
        kinds = [(table.ndim, table.dtype) for table in (anchors, scores, boxes)]
        halves = (2, torch.float16)
        if kinds != [(1, torch.int64), halves, halves] or min(map(min, grids)) < 1:
            raise ValueError("tables of another kind")
        if self._grids not in ([], grids) or not ((anchors >= 0) & (anchors < total)).all():
            raise ValueError("other anchors")
        if not (scores.isfinite().all() and boxes.isfinite().all()):
            raise ValueError("numbers that are not finite")
        self._grids = grids
        parts = zip(
            *(table.split(counts.tolist()) for table in (anchors, scores, boxes)), strict=True
        )
        for (number, frame), row in zip(tables["views"].tolist(), parts, strict=True):
            self._found[View(number, frame)] = _Row(*row)


def frames_hash(files: Iterable[str]) -> str:
    """Return a hash of the content of image files, in their order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file_hash(Path(file)).encode())
    return digest.hexdigest()


def _half(values: Tensor) -> Tensor:
    limit = torch.finfo(torch.float16).max
    return values.detach().float().clamp(-limit, limit).cpu().half()


def _logit(score: float) -> float:
    return math.log(score / (1 - score))
