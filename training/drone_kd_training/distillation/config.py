# SPDX-License-Identifier: AGPL-3.0-or-later
"""Configuration of a training run: `Config`, its options, its ``config.yaml``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import get_type_hints

import yaml

from drone_kd.files import write_text
from drone_kd.parsing import read_yaml
from drone_kd.text import one_line
from drone_kd_training.dataclass_options import option
from drone_kd_training.distillation.terms import TERM_HELP

NO_TEACHER = "none"
# A choice that follows from the data.
AUTO = "auto"
# What the teacher sees for pseudo-labels.
VIEW, FRAME = "view", "frame"
# Steps of an epoch where their number is given for the run.
LONGEST_EPOCH = 100
# Settings of Ultralytics that --set does not change: files that it reads or writes, what a run
# consists of, other modes than training, and inputs that are not square.
NOT_SETTABLE = frozenset({
    "task", "mode", "model", "data", "project", "name", "exist_ok", "resume", "save", "save_dir",
    "save_json", "save_frames", "save_txt", "save_conf", "save_crop", "cfg", "tracker", "source",
    "split", "profile", "visualize", "show", "embed", "format", "fraction", "augmentations",
    "workspace", "optimize", "dynamic", "simplify", "opset", "dnn", "stream_buffer", "vid_stride",
    "rect",
})  # fmt: skip
# Options by their group in the help.
_input = partial(option, group="data and models")
_training = partial(option, group="training")
_distillation = partial(option, group="distillation")


@dataclass(frozen=True)
class Config:
    """Configuration of a run; ``config.yaml`` in its output folder, which --resume reads.

    The help of an option says what its field is. Beyond that: with ``teachers``, ``data`` and
    ``teacher`` follow from that file (`teachers.teaching_plan`); ``balance`` holds at lambda = 1,
    for gradients on the features that enter the head; ``quantize`` "int8" trains the checkpoint
    ``student``, with its float weights as a further teacher.


    Raises:
        ValueError: a value is out of its range, or two do not go together.
    """

    data: str = _input(help="data.yaml in Ultralytics' format; '' with --classes: no labels")
    teacher: str = _input(
        help="checkpoint (YOLO or RT-DETR), or predictions: a folder of YOLO .txt with "
        "confidences, or a COCO results .json; 'none' trains the student alone"
    )
    student: str = _input(help="checkpoint or model yaml")
    teachers: str = _input(
        "",
        metavar="FILE.yaml",
        help="several sources and teachers, instead of --data and --teacher; "
        "docs/guides/teachers.md describes the file",
    )
    unlabelled: tuple[str, ...] = _input(
        (),
        nargs="+",
        metavar="FLIGHT",
        help="flights without labels (folders of images, videos, bags): confident predictions of "
        "the teacher are pseudo-labels, uncertain ones are ignored in the loss",
    )
    classes: tuple[str, ...] = _input(
        (),
        metavar="NAMES",
        help="without --data: the classes to learn from the teacher alone, such as car,person",
    )
    tile: str = _input(
        AUTO,
        metavar="PX",
        help="windows into which larger frames of flights are cut; off: whole frames; auto: as "
        "large as the labelled frames, without them as --imgsz",
    )
    max_frames: int = _input(
        1000, metavar="N", help="frames of all flights together, evenly spread, before cutting"
    )
    pseudo_threshold: str = _input(
        AUTO,
        metavar="SCORE",
        help="above it a prediction on an unlabelled frame is a pseudo-label: one for all "
        "classes, or car=0.3,person=0.5; auto: by class, from the labelled frames",
    )
    pseudo_labels: str = _input(
        VIEW,
        choices=(VIEW, FRAME),
        help="what the teacher sees for pseudo-labels: each augmented view, or the frame itself, "
        "once; its boxes are then augmented as labels are",
    )
    labelled_share: float = _input(
        0.5,
        metavar="SHARE",
        help="of the frames in a batch, beside unlabelled ones; 0: as many as there are",
    )
    epochs: int = _training(100, metavar="N", help="training epochs")
    steps: int = _training(
        0,
        metavar="N",
        help="training steps, in the place of epochs: equal for data sets of any size (rounded "
        "up to whole epochs of at most 100 steps)",
    )
    imgsz: int = _training(640, metavar="PX", help="square input")
    batch: int = _training(
        16, metavar="N", help="frames per step; -1: as many as fit into the GPU beside the teacher"
    )
    device: str = _training("", help="cpu, 0, or 0,1 (default: the GPU if there is one)")
    seed: int = _training(0, metavar="N", help="of weights, order and augmentation")
    fraction: float = _training(1.0, metavar="SHARE", help="share of the training frames used")
    val: bool = _training(True, help="validate every epoch and keep the best, or only at the end")
    overrides: Mapping[str, object] = _training(
        factory=dict,
        flag="--set",
        help="a training setting of Ultralytics, such as lr0=0.01; repeatable",
    )
    baseline: bool = _training(
        False,
        help="train the student alone, too, for as many steps: report.html compares both; on a "
        "CPU at the same time, on half of the cores",
    )
    terms: tuple[str, ...] = _distillation(
        ("class", "box", "assign"),
        metavar="NAMES",
        help="distillation terms, joined by commas: "
        + "; ".join(f"{name}: {text}" for name, text in TERM_HELP.items()),
    )
    balance: float = _distillation(
        1.0, metavar="SHARE", help="gradient of each term as a share of the detection loss's"
    )
    rebalance: int = _distillation(
        40,
        metavar="STEPS",
        help="steps between two measurements of these gradients; 0: at the start only",
    )
    schedule: str = _distillation(
        "constant", choices=("constant", "cosine"), help="weight of the terms over the run"
    )
    temperature: float = _distillation(1.0, metavar="T", help="softens the class probabilities")
    beta: float = _distillation(
        0.0, help="class term: exponent of its weight, the distance of both probabilities"
    )
    keep_labels: bool = _distillation(
        True, help="class term: never lower a probability that a label wants higher"
    )
    views: int = _distillation(
        0,
        metavar="N",
        help="augmentations of each frame, for which the teacher's predictions are stored: it "
        "runs once for each; 0: a new one at every step",
    )
    view_cache: str = _distillation(
        "", metavar="DIR", help="where they are stored (default: views in the run's folder)"
    )
    teacher_scale: float = _distillation(
        1, choices=(1, 1.5, 2, 4), help="size of the teacher's input, relative to the student's"
    )
    teacher_tiles: bool = _distillation(
        False,
        help="run the teacher on its larger input in tiles: less memory, a little more time",
    )
    quantize: str = _distillation(
        "",
        choices=("int8",),
        help="with --from: quantization-aware training with teacher and float student as "
        "teachers; exported beside calibration alone (default: off)",
    )
    # Without an option: whether the frames that are judged are of the flights that teach, as in
    # `compare --select`; then near duplicates of them are no mistake.
    same_flights: bool = False

    def __post_init__(self) -> None:
        # Lists, as read from yaml; text, as version 0.1 wrote one folder.
        for name in ("terms", "unlabelled", "classes"):
            value = getattr(self, name)
            given = (value,) * bool(value) if isinstance(value, str) else value
            object.__setattr__(self, name, tuple(given))
        object.__setattr__(self, "classes", tuple(str(name).strip() for name in self.classes))
        for name, holds, expected in self._ranges():
            if not holds:
                raise ValueError(f"{name} must be {expected}, got {getattr(self, name)}")
        self._check_overrides()
        for conflict, message in self._conflicts():
            if conflict:
                raise ValueError(message)

    def _ranges(self) -> Iterator[tuple[str, object, str]]:
        """Yield field, whether its value is in range, and the range."""
        yield "epochs", self.epochs >= 1, "1 or more"
        yield "unlabelled", all(self.unlabelled), "paths that are not empty"
        tile = self.tile in (AUTO, "off")
        tile = tile or (self.tile.isdecimal() and 32 <= int(self.tile) <= 8192)  # as `Crops`
        yield "tile", tile, "auto, off or a number of pixels from 32 to 8192"
        yield "pseudo_labels", self.pseudo_labels in (VIEW, FRAME), f"{VIEW} or {FRAME}"
        yield "max_frames", self.max_frames >= 1, "1 or more"
        yield "steps", self.steps >= 0, "0 or more"
        yield "views", self.views >= 0, "0 or more"
        yield "seed", self.seed >= 0, "0 or more"
        yield "rebalance", self.rebalance >= 0, "0 or more"
        yield "beta", 0 <= self.beta <= 4, "0 to 4"
        yield "schedule", self.schedule in ("constant", "cosine"), "constant or cosine"
        yield "labelled_share", 0 <= self.labelled_share < 1, "0 or more and below 1"
        yield "imgsz", self.imgsz >= 32 and self.imgsz % 32 == 0, "a multiple of 32"
        yield "batch", self.batch >= 1 or self.batch == -1, "1 or more, or -1"
        yield "temperature", self.temperature > 0, "above 0"
        known = self.terms and set(self.terms) <= set(TERM_HELP)
        yield "terms", known, "some of " + ", ".join(TERM_HELP)
        yield "balance", 0 < self.balance <= 10, "above 0 and at most 10"
        yield "teacher_scale", self.teacher_scale in (1, 1.5, 2, 4), "1, 1.5, 2 or 4"
        scaled = f"a multiple of 32 at {self.teacher_scale} times the size, too"
        yield "imgsz", self.teacher_imgsz % 32 == 0, scaled
        yield "quantize", self.quantize in ("", "int8"), "int8"
        yield "fraction", 0 < self.fraction <= 1, "above 0 and at most 1"

    def _check_overrides(self) -> None:
        if not self.overrides:
            return
        from ultralytics.cfg import check_cfg  # imports torch
        from ultralytics.utils import DEFAULT_CFG_DICT

        if unknown := set(self.overrides) - set(DEFAULT_CFG_DICT):
            raise ValueError(
                f"unknown training setting {_listed(unknown)}: see Ultralytics' settings"
            )
        if fixed := NOT_SETTABLE & set(self.overrides) - {f.name for f in fields(self)}:
            raise ValueError(f"{_listed(fixed)} is no training setting: leave --set for it out")
        if own := set(self.overrides) & {f.name for f in fields(self)}:
            raise ValueError(f"{_listed(own)} has an option of its own: use --{sorted(own)[0]}")
        try:
            check_cfg(dict(self.overrides))
        except (TypeError, ValueError) as error:
            raise ValueError(f"--set: {one_line(error)}") from None
        if str(self.overrides.get("cache", "")).lower() == "disk":
            raise ValueError("cache=disk would write beside the images: use cache=ram")

    def _conflicts(self) -> Iterator[tuple[object, str]]:
        """Yield whether fields conflict, and the error for it."""
        own = self.unlabelled or self.quantize or self.fraction < 1 or self.val
        yield (
            self.teachers and own,
            "a file of teachers excludes --unlabelled, --quantize and --fraction, which it sets "
            "itself, and needs --no-val: its sources are evaluated at the end",
        )
        yield self.unlabelled and not self.distils, "unlabelled frames need a teacher"
        yield self.classes and self.data, "classes are those of the data: leave --classes out"
        yield self.classes and not self.unlabelled, "classes without data need --unlabelled"
        yield (
            self.classes and self.val,
            "without labels nothing can be validated: add --no-val",
        )
        yield (
            self.quantize and Path(self.student).suffix != ".pt",
            f"quantize needs a trained checkpoint (.pt), got {self.student}",
        )
        yield (
            self.quantize and not self.distils,
            "quantize needs a teacher: the student's own, or the student itself",
        )
        yield (
            self.baseline and (self.teachers or self.classes or self.quantize or not self.distils),
            "a baseline needs labels and a teacher: leave it out with --classes, --teachers, "
            "--quantize and --teacher none",
        )
        yield (
            self.baseline and self.batch == -1,
            "a baseline needs the same batch: give --batch, or leave --baseline out",
        )
        yield self.quantize and self.unlabelled, "quantize does not go with unlabelled frames"
        yield (
            self.views and "feature" in self.terms,
            "the term feature needs the teacher at every step: leave --views out",
        )
        other = [k for k in ("multi_scale", "cutmix", "copy_paste") if self.overrides.get(k)]
        yield (
            self.views and other,
            "a stored view depends on its frames alone, not on labels or on the step: leave "
            f"{', '.join(other)} or --views out",
        )
        yield (
            self.views and self.temperature > 1,
            "background is not stored, and a temperature above 1 compares it: leave --views out",
        )
        yield (
            self.teacher_scale > 1 and self.overrides.get("multi_scale"),
            "teacher_scale needs a fixed input: leave multi_scale out",
        )

    @property
    def teacher_imgsz(self) -> int:
        """Side of the teacher's square input in pixels."""
        return math.ceil(self.imgsz * self.teacher_scale)

    @property
    def epochs_and_steps(self) -> tuple[int, int]:
        """Number of epochs, and of steps in each; 0 steps: one pass over the frames."""
        if not self.steps:
            return self.epochs, 0
        epochs = math.ceil(self.steps / LONGEST_EPOCH)
        return epochs, math.ceil(self.steps / epochs)

    @property
    def distils(self) -> bool:
        """Whether there is a teacher."""
        return self.teacher != NO_TEACHER


def write_config(config: Config, output: Path) -> None:
    """Write the ``config.yaml`` of a run into its folder, which is made."""
    output.mkdir(parents=True, exist_ok=True)
    found = asdict(config)
    content = {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}
    write_text(output / "config.yaml", yaml.safe_dump(content, sort_keys=False))


def read_config(output: Path) -> Config:
    """Read the ``config.yaml`` of a run's folder; ValueError: it is none of this version."""
    file = Path(output) / "config.yaml"
    content = read_yaml(file)
    try:
        config = Config(**content)
    except TypeError as error:  # other keys, or values that cannot be compared
        raise ValueError(f"{one_line(file)}: expected a run's settings: {error}") from None
    for name, kind in get_type_hints(Config).items():
        if isinstance(kind, type) and not isinstance(value := getattr(config, name), kind):
            if kind is float and isinstance(value, int):
                continue
            expected = f"{name} of type {kind.__name__}"
            raise ValueError(
                f"{one_line(file)}: expected {expected}, got {one_line(repr(value), 60)}"
            )
    return config


def _listed(names: Iterable[object]) -> str:
    return one_line(", ".join(sorted(map(str, names))))
