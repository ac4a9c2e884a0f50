# SPDX-License-Identifier: AGPL-3.0-or-later
"""Train a student with its teacher: python -m training distill.

    --teacher teacher.pt --student yolo11n.yaml --data data.yaml --output runs/car
    ... --output runs/car --resume     # after an interruption
    --teacher none ...                 # the student alone (or a teacher to be)

The loop, the detection loss, augmentation and checkpoints are Ultralytics'; what is added is one
wrapper round the detection criterion (`training.criterion`), so that the checkpoint holds the
student alone and loads anywhere.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from copy import copy
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import yaml
from ultralytics import __version__ as ultralytics_version
from ultralytics.data import build_yolo_dataset
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import DEFAULT_CFG, DEFAULT_CFG_DICT, LOGGER, RANK
from ultralytics.utils.torch_utils import strip_optimizer, unwrap_model

from training.criterion import (
    BOX_TERMS,
    TERMS,
    Balance,
    DistillationLoss,
    average_over_processes,
    downsample,
    make_adapters,
    match_levels,
)
from training.data import image_paths, load_data, write_text
from training.evaluate import evaluate
from training.htmlreport import write_report
from training.models import (
    UnusableModelError,
    class_names,
    cost,
    load_model,
    match_classes,
    resolve_model,
)
from training.report import format_score
from training.softlabels import extend_labels, split_batch
from training.teachers import Predictions, open_teacher

NO_TEACHER = "none"
UNLABELLED = "unlabelled.txt"
# As CUDA and the CPU's allocator put it.
_NO_MEMORY = re.compile("out of memory|allocate memory", re.IGNORECASE)


@dataclass(frozen=True)
class Config:
    """What a run is made of; written to ``config.yaml`` in its output folder, and read back by
    --resume.

    ``terms`` are names of `training.criterion.TERMS`. ``balance`` is the share that the gradient
    of each term has of the detection loss's gradient on the same features, at lambda = 1.
    ``teacher_scale``: the teacher sees the augmented picture this many times as large, in both
    directions, as the student does. ``unlabelled`` is a folder of further training frames, which
    the teacher labels. ``overrides`` are Ultralytics' own training settings (lr0,
    mosaic, ...).
    """

    data: str
    teacher: str
    student: str
    epochs: int = 100
    imgsz: int = 640
    batch: int = 16
    device: str = ""
    seed: int = 0
    terms: tuple[str, ...] = ("class", "box")
    temperature: float = 1.0
    balance: float = 0.2
    teacher_scale: int = 1
    unlabelled: str = ""
    fraction: float = 1.0
    val: bool = True
    overrides: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", tuple(self.terms))  # a list, as read from yaml
        checks = (
            ("epochs", self.epochs >= 1, "1 or more"),
            ("imgsz", self.imgsz >= 32 and self.imgsz % 32 == 0, "a multiple of 32"),
            ("batch", self.batch >= 1, "1 or more"),
            ("temperature", self.temperature > 0, "above 0"),
            ("terms", self.terms and set(self.terms) <= set(TERMS), "some of " + ", ".join(TERMS)),
            ("balance", 0 < self.balance <= 1, "above 0 and at most 1"),
            ("teacher_scale", self.teacher_scale in (1, 2, 4), "1, 2 or 4"),
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
        if self.unlabelled and not self.distils:
            raise ValueError("unlabelled frames need a teacher")
        if self.teacher_scale > 1 and self.overrides.get("multi_scale"):
            raise ValueError("teacher_scale needs a fixed input: leave multi_scale out")

    @property
    def distils(self) -> bool:
        """Whether there is a teacher."""
        return self.teacher != NO_TEACHER


class DistillTrainer(DetectionTrainer):
    """Ultralytics' trainer with the distillation loss; configured by the run's folder.

    (From the folder, since the processes of a multi-GPU run are given nothing but Ultralytics' own
    settings.)
    """

    def __init__(
        self, cfg=DEFAULT_CFG, overrides: dict | None = None, _callbacks: dict | None = None
    ) -> None:
        super().__init__(cfg, overrides, _callbacks)
        self.config = read_config(self.save_dir)
        if self.device.type == "cpu":
            # Ultralytics trains on one core less than there are, and loads in the training
            # process: on a small machine that costs almost half of the speed.
            self.args.workers = min(2, _cores())
            self.add_callback("on_train_start", lambda _: torch.set_num_threads(_cores()))
        self.add_callback("on_train_epoch_start", DistillTrainer._seed_epoch)
        if self.config.distils:
            self.add_callback("on_pretrain_routine_end", DistillTrainer._attach)
        self.add_callback("on_pretrain_routine_end", DistillTrainer._load_state)
        self.add_callback("on_model_save", DistillTrainer._save_state)

    def _seed_epoch(self) -> None:
        """Make the frames of an epoch depend on seed and epoch alone (Ultralytics callback).

        So a resumed run sees what an uninterrupted one would have seen, and runs that are paired
        by their seed see the same, whatever else they draw.
        """
        seed = (self.config.seed * 100_003 + self.epoch) * 1009 + max(RANK, 0)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        self.train_loader.generator.manual_seed(seed)
        self.train_loader.reset()

    def _close_dataloader_mosaic(self) -> None:
        super()._close_dataloader_mosaic()
        self._seed_epoch()  # the workers start anew, with other numbers than before otherwise

    @cached_property
    def teacher(self):
        """The run's teacher."""
        names = tuple(self.data["names"].values())
        return open_teacher(self.config.teacher, names)

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None):
        """Read training frames at the size that the teacher sees, with its answers if it has
        them ready.
        """
        if mode != "train" or not self.config.distils:
            return super().build_dataset(img_path, mode, batch)
        args = copy(self.args)
        args.imgsz *= self.config.teacher_scale
        stride = max(int(unwrap_model(self.model).stride.max()), 32)
        dataset = build_yolo_dataset(args, img_path, batch, self.data, mode=mode, stride=stride)
        predictions = self.teacher if isinstance(self.teacher, Predictions) else None
        self.soft_scores = None
        if predictions or self.config.unlabelled:
            listed = self.save_dir / UNLABELLED
            unlabelled = set(listed.read_text().splitlines()) if listed.is_file() else set()
            self.soft_scores, frames = extend_labels(
                dataset.labels, self.data["nc"], unlabelled, predictions
            )
            if predictions and not frames:
                raise UnusableModelError(
                    f"{self.config.teacher}: no prediction is named like a training frame"
                )
            LOGGER.info(
                f"{len(dataset.labels)} training frames, {len(unlabelled)} of them without labels"
                + (f", {frames} with predictions of the teacher" if predictions else "")
            )
        return dataset

    def preprocess_batch(self, batch: dict) -> dict:
        """Reduce the frames for the student, and part what travelled with the labels."""
        batch = super().preprocess_batch(batch)
        if self.config.teacher_scale > 1 and self.config.distils:
            batch["teacher_img"] = batch["img"]
            batch["img"] = downsample(batch["img"], self.config.teacher_scale)
        if self.config.distils and self.soft_scores is not None:
            batch = split_batch(batch, self.data["nc"], self.soft_scores)
        return batch

    def build_optimizer(self, model, *args, **kwargs):
        """Match teacher and student, and train the adapters in a parameter group of their own."""
        optimizer = super().build_optimizer(model, *args, **kwargs)
        config = self.config
        if config.distils:
            student = unwrap_model(model)
            heads = student.model[-1], self.teacher.head
            self.levels = match_levels(*heads, config.teacher_scale)
            self.adapters = make_adapters(config.terms, self.levels, *heads, seed=config.seed)
            self.adapters.to(self.device)
            like = next(g for g in optimizer.param_groups if g.get("param_group") == "weight")
            if params := list(self.adapters.parameters()):
                group = {**like, "params": params, "param_group": "adapter"}
                optimizer.add_param_group(group)
        return optimizer

    def optimizer_step(self) -> None:
        """Average the adapters' gradients: DDP does so for the student alone."""
        if self.config.distils:
            for parameter in self.adapters.parameters():
                if parameter.grad is not None:
                    parameter.grad = average_over_processes(parameter.grad)
        super().optimizer_step()

    def _attach(self) -> None:
        """Put the distillation criterion in the place of the student's (Ultralytics callback)."""
        config = self.config
        student = unwrap_model(self.model)
        if getattr(student, "criterion", None) is None:
            student.criterion = student.init_criterion()
        student.criterion = DistillationLoss(
            student.criterion,
            self.teacher,
            student,
            match_classes(class_names(student), self.teacher.names),
            self.levels,
            self.adapters,
            config.terms,
            config.temperature,
            Balance(config.balance),
        )
        batches, close = len(self.train_loader), self.args.close_mosaic
        student.criterion.steps = (
            self.start_epoch * batches,
            self._get_warmup_iterations(batches),
            (self.epochs - close) * batches,
            close > 0,
        )

    @property
    def state_file(self) -> Path:
        """What a resumed run needs beside Ultralytics' checkpoint."""
        return self.save_dir / "weights" / "resume.pt"

    def _save_state(self) -> None:
        """Keep beside each checkpoint what it lacks (Ultralytics callback).

        Ultralytics' own checkpoint holds the averaged weights alone, and them and SGD's momentum
        in half precision: from there a run goes on, but not as if it had not been interrupted.
        """
        student = unwrap_model(self.model)
        state = {
            "epoch": self.epoch,
            "student": student.state_dict(),
            "average": self.ema.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self.config.distils:
            state["balance"] = student.criterion.balance.state()
            state["adapters"] = self.adapters.state_dict()
        temporary = self.state_file.with_name(".resume.pt.tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.state_file)

    def _load_state(self) -> None:
        """Go on exactly where an interrupted run was (Ultralytics callback)."""
        if not self.start_epoch or not self.state_file.is_file():
            return
        state = torch.load(self.state_file, map_location=self.device, weights_only=True)
        if state["epoch"] != self.start_epoch - 1:
            LOGGER.warning("interrupted between two files: balance and adapters start anew")
            return
        student = unwrap_model(self.model)
        student.load_state_dict(state["student"])
        self.ema.ema.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.config.distils:
            self.adapters.load_state_dict(state["adapters"])
            student.criterion.balance = Balance(self.config.balance, state["balance"])

    def label_loss_items(self, loss_items=None, prefix: str = "train"):
        """Leave out columns of terms that validation does not compute: they would read as 0."""
        named = super().label_loss_items(loss_items, prefix)
        if prefix != "val":
            return named
        kept = [k for k in named if not k.startswith("val/kd_")]
        return {k: named[k] for k in kept} if isinstance(named, dict) else kept

    def validate(self):
        """Validate when asked to: Ultralytics does so at the last epoch in any case."""
        return super().validate() if self.args.val else (self.metrics, self.fitness)

    def final_eval(self) -> None:
        """Make the checkpoints small; the figures are taken by `training.evaluate`."""
        if RANK in {-1, 0}:
            for path in filter(Path.exists, (self.last, self.best)):
                strip_optimizer(path)

    def save_model(self) -> bool:
        """Write checkpoints beside their place, then rename: an interrupt keeps the old ones."""
        last, best = self.last, self.best
        self.last, self.best = (p.with_name(f".{p.name}.tmp") for p in (last, best))
        try:
            saved = super().save_model()
            for path, temporary in ((last, self.last), (best, self.best)):
                if temporary.exists():
                    os.replace(temporary, path)
        finally:
            self.last, self.best = last, best
        return saved


def _cores() -> int:
    return (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )


def read_config(output: Path) -> Config:
    """Read the ``config.yaml`` of a run's folder."""
    return Config(**yaml.safe_load((Path(output) / "config.yaml").read_text(encoding="utf-8")))


def distill(
    config: Config, output: Path, resume: bool = False, measure_teacher: bool = True
) -> dict:
    """Train, evaluate and leave ``best.pt``, ``metrics.json``, ``results.csv``, ``config.yaml``,
    ``curves.png``, ``report.html``.

    Args:
        config: the run; with ``resume`` the one in the folder counts.
        output: the run's folder: new or empty, or with ``resume`` one that was interrupted.
        measure_teacher: evaluate the teacher, too, and warn if it is the weaker one.

    Returns:
        The content of ``metrics.json``.

    Raises:
        ValueError: (also as DataError, UnusableModelError) anything about the input that cannot
        work, before any
            training; or a folder that is in use.
    """
    output = Path(output).resolve()
    done = output / "metrics.json"
    if resume and done.is_file():
        LOGGER.info(f"{output} is finished, nothing to resume")
        return json.loads(done.read_text(encoding="utf-8"))
    if resume and (output / "config.yaml").is_file():
        config = read_config(output)
    elif resume:
        raise ValueError(
            f"nothing to resume in {output}: it holds no config.yaml; leave --resume out to start"
        )
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(
            f"{output} is not an empty folder: choose another, or --resume to go on with that run"
        )

    # What cannot work is refused here, before anything is written.
    data = load_data(config.data)
    student_source = resolve_model(config.student)
    untrained, _ = load_model(student_source)
    teacher = open_teacher(config.teacher, data.names) if config.distils else None
    if teacher is not None:
        LOGGER.info(match_classes(data.names, teacher.names).table())
        levels = match_levels(untrained.model[-1], teacher.head, config.teacher_scale)
        if levels is not None:
            LOGGER.info(levels.table())
        elif impossible := set(config.terms) - BOX_TERMS:
            raise UnusableModelError(
                f"{config.teacher} answers with boxes, without a Detect head: it cannot teach "
                f"{', '.join(sorted(impossible))}, use --terms {','.join(sorted(BOX_TERMS))}"
            )

    unlabelled = image_paths(Path(config.unlabelled).resolve()) if config.unlabelled else []

    output.mkdir(parents=True, exist_ok=True)
    content = {**asdict(config), "terms": list(config.terms)}
    write_text(output / "config.yaml", yaml.safe_dump(content, sort_keys=False))
    if config.fraction < 1:
        data = replace(data, train=_thin(data.train, config.fraction, output / "train.txt"))
    if unlabelled:
        lists = {"train.txt": image_paths(data.train) + unlabelled, UNLABELLED: unlabelled}
        for name, paths in lists.items():
            write_text(output / name, "\n".join(map(str, paths)) + "\n")
        data = replace(data, train=output / "train.txt")
    resolved = data.write_resolved(output / "data.yaml")
    started = time.time()
    trainer = DistillTrainer(overrides=_overrides(config, student_source, resolved, output))
    try:
        with _interrupt_between_batches(trainer):
            trainer.train()
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
            raise RuntimeError(
                f"out of memory: lower --batch (now {config.batch}) or --imgsz (now "
                f"{config.imgsz}), or take a smaller teacher or --teacher-scale"
            ) from error
        raise
    train_seconds = round(time.time() - started, 1)

    student, _ = load_model(str(output / "weights" / "best.pt"))
    metrics = {
        "student": {
            **evaluate(student, resolved, imgsz=config.imgsz),
            **cost(student, config.imgsz),
        },
        "teacher": _teacher_figures(resolved, config)
        if teacher is not None and teacher.head is not None and measure_teacher
        else None,
        "epochs": config.epochs,
        "imgsz": config.imgsz,
        "seed": config.seed,
        "seconds": train_seconds,
        "versions": {"ultralytics": ultralytics_version, "torch": torch.__version__},
    }
    _warn_if_weaker(metrics)
    plot_curves(output / "results.csv", output / "curves.png")
    models = {k: metrics[k] for k in ("teacher", "student") if metrics[k]}
    curves = {"training": output / "curves.png"}
    write_report(output / "report.html", f"Student {config.student}", models, curves)
    temporary = output / ".best.pt.tmp"
    shutil.copyfile(output / "weights" / "best.pt", temporary)
    os.replace(temporary, output / "best.pt")
    trainer.state_file.unlink(missing_ok=True)
    write_text(
        done, json.dumps(metrics, indent=1)
    )  # last: its presence means that the run is complete
    return metrics


@contextlib.contextmanager
def _interrupt_between_batches(trainer: DistillTrainer) -> Iterator[None]:
    """Ctrl-C stops at the next batch; a second one stops at once.

    An exception out of a signal is lost where it meets Python's own clean-up, such as the forking
    of a loader's process.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    seen = threading.Event()

    def on_signal(*_) -> None:
        if seen.is_set():
            raise KeyboardInterrupt
        seen.set()
        LOGGER.info("stopping")

    def check(_) -> None:
        if seen.is_set():
            raise KeyboardInterrupt

    for event in ("on_train_batch_start", "on_val_batch_start"):
        trainer.add_callback(event, check)
    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    check(trainer)


def _teacher_figures(data: Path, config: Config) -> dict:
    """Measured at the size at which it teaches."""
    teacher, _ = load_model(config.teacher)
    imgsz = config.imgsz * config.teacher_scale
    return {**evaluate(teacher, data, imgsz=imgsz), **cost(teacher, imgsz)}


def _warn_if_weaker(metrics: dict) -> None:
    """Say so where the student has nothing to learn from its teacher."""
    student, teacher = (
        (metrics[who] or {}).get("map50_95") or 0.0 for who in ("student", "teacher")
    )
    if metrics["teacher"] and teacher < student:
        LOGGER.warning(
            f"the teacher is weaker than its student: mAP50-95 {format_score(teacher)} against "
            f"{format_score(student)}; take a better teacher, or train it on this data first"
        )


def _thin(split: Path, fraction: float, output: Path) -> Path:
    """List every n-th picture: Ultralytics takes the first ones, which are of one flight."""
    paths = image_paths(split)
    count = max(1, round(len(paths) * fraction))
    kept = [paths[i * len(paths) // count] for i in range(count)]
    write_text(output, "\n".join(map(str, kept)) + "\n")
    return output


def _overrides(config: Config, student: str, data: Path, output: Path) -> dict:
    last = output / "weights" / "last.pt"
    overrides = {
        "task": "detect",
        "mode": "train",
        "data": str(data),
        "save_dir": str(output),
        "epochs": config.epochs,
        "imgsz": config.imgsz,
        "batch": config.batch,
        "device": config.device or None,
        "seed": config.seed,
        "val": config.val,
        "plots": False,
        "close_mosaic": min(10, math.ceil(config.epochs / 10)),
        "exist_ok": True,
        # As Ultralytics' own automatic choice does: at 0.1, its default, an AdamW moves every bias
        # by up to 0.1 a step, and a pretrained student has forgotten what it knew.
        "warmup_bias_lr": 0.0,
        **config.overrides,
    }
    if last.is_file():
        LOGGER.info(f"resuming from {last}")
        return {**overrides, "model": str(last), "resume": str(last)}
    return {**overrides, "model": student}


def plot_curves(csv: Path, picture: Path) -> None:
    """Draw every loss term and the validation's mAP of a results.csv over the epochs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import polars

    table = polars.read_csv(csv)
    names = [c for c in table.columns if c.startswith("train/")]
    names += [c for c in table.columns if c.startswith("metrics/mAP") and table[c].sum() > 0]
    columns = 4
    rows = math.ceil(len(names) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 2.6 * rows), squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        axis.plot(table["epoch"], table[name], marker="o", markersize=3)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("epoch", fontsize=8)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(picture, dpi=90)
    plt.close(figure)
