# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a training run is made of: `Config`, written into its folder as ``config.yaml``."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml
from ultralytics.utils import DEFAULT_CFG_DICT

from drone_kd_training.distillation.criterion import TERMS

NO_TEACHER = "none"


@dataclass(frozen=True)
class Config:
    """What a run is made of; written to ``config.yaml`` in its output folder, and read back by
    --resume.

    ``teachers`` is a file of sources and teachers (`teachers.plan`), from which ``data`` and
    ``teacher`` then follow. ``terms`` are names of `criterion.TERMS`. ``balance`` is the
    share that the gradient of each term has of the detection loss's gradient on the same
    features, at lambda = 1. ``teacher_scale``: the teacher sees the augmented picture this many
    times as large, in both directions, as the student does; with ``teacher_tiles`` it looks at it
    piece by piece, which takes less memory. ``unlabelled`` is a folder of further training frames,
    which the teacher labels. ``quantize`` is "int8" to make the checkpoint ``student`` fit for
    INT8, with itself as it was as a further teacher. A ``batch`` of -1 is fitted to the GPU's
    memory. ``overrides`` are Ultralytics' own training settings (lr0, mosaic, ...).
    """

    data: str
    teacher: str
    student: str
    teachers: str = ""
    epochs: int = 100
    imgsz: int = 640
    batch: int = 16
    device: str = ""
    seed: int = 0
    terms: tuple[str, ...] = ("class", "assign")
    temperature: float = 1.0
    balance: float = 1.0
    teacher_scale: float = 1
    teacher_tiles: bool = False
    unlabelled: str = ""
    quantize: str = ""
    fraction: float = 1.0
    val: bool = True
    overrides: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", tuple(self.terms))  # a list, as read from yaml
        checks = (
            ("epochs", self.epochs >= 1, "1 or more"),
            ("imgsz", self.imgsz >= 32 and self.imgsz % 32 == 0, "a multiple of 32"),
            ("batch", self.batch >= 1 or self.batch == -1, "1 or more, or -1"),
            ("temperature", self.temperature > 0, "above 0"),
            ("terms", self.terms and set(self.terms) <= set(TERMS), "some of " + ", ".join(TERMS)),
            ("balance", 0 < self.balance <= 1, "above 0 and at most 1"),
            ("teacher_scale", self.teacher_scale in (1, 1.5, 2, 4), "1, 1.5, 2 or 4"),
            (
                "imgsz",
                self.teacher_imgsz % 32 == 0,
                f"a multiple of 32 at {self.teacher_scale} times the size, too",
            ),
            ("quantize", self.quantize in ("", "int8"), "int8"),
            ("fraction", 0 < self.fraction <= 1, "above 0 and at most 1"),
        )
        for name, holds, expected in checks:
            if not holds:
                raise ValueError(f"{name} must be {expected}, got {getattr(self, name)}")
        unknown = set(self.overrides) - set(DEFAULT_CFG_DICT)
        if unknown:
            raise ValueError(
                f"unknown training setting {', '.join(sorted(unknown))}: see Ultralytics' settings"
            )
        own = set(self.overrides) & {f.name for f in fields(self)}
        if own:
            raise ValueError(
                f"{', '.join(sorted(own))} has an option of its own: use --{sorted(own)[0]}"
            )
        if self.teachers and (self.unlabelled or self.quantize or self.fraction < 1 or self.val):
            raise ValueError(
                "a file of teachers goes without unlabelled, quantize and fraction, which it has "
                "its own words for, and with --no-val: its sources are measured at the end"
            )
        if self.unlabelled and not self.distils:
            raise ValueError("unlabelled frames need a teacher")
        if self.quantize and Path(self.student).suffix != ".pt":
            raise ValueError(f"quantize needs a trained checkpoint (.pt), got {self.student}")
        if self.quantize and not self.distils:
            raise ValueError("quantize needs a teacher: the student's own, or the student itself")
        if self.quantize and self.unlabelled:
            raise ValueError("quantize does not go with unlabelled frames")
        if self.teacher_scale > 1 and self.overrides.get("multi_scale"):
            raise ValueError("teacher_scale needs a fixed input: leave multi_scale out")

    @property
    def teacher_imgsz(self) -> int:
        """Side of the picture that the teacher sees, in pixels."""
        return math.ceil(self.imgsz * self.teacher_scale)

    @property
    def distils(self) -> bool:
        """Whether there is a teacher."""
        return self.teacher != NO_TEACHER


def read_config(output: Path) -> Config:
    """Read the ``config.yaml`` of a run's folder."""
    return Config(**yaml.safe_load((Path(output) / "config.yaml").read_text(encoding="utf-8")))


def read_value(text: str) -> object:
    """Read a setting as YAML does, and 1e-3, which YAML takes for text, as a number."""
    value = yaml.safe_load(text)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value
