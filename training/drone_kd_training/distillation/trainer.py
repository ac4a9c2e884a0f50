# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ultralytics' trainer with the distillation criterion in the place of the detection one."""

from __future__ import annotations

import json
import math
import os
import time
from contextlib import ExitStack
from copy import copy
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from ultralytics import __version__ as ultralytics_version
from ultralytics.engine import trainer as ultralytics_trainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import DEFAULT_CFG, DEFAULT_CFG_DICT, LOGGER, RANK
from ultralytics.utils.torch_utils import unwrap_model

from drone_kd.files import atomic_file, write_text
from drone_kd_training.distillation.config import NOT_SETTABLE, read_config
from drone_kd_training.distillation.criterion import (
    DistillationLoss,
    InFloat32,
    Settings,
    computes_in_bfloat16,
    make_adapters,
)
from drone_kd_training.distillation.levels import LevelMatch, match_levels
from drone_kd_training.distillation.loss_balancing import Balance, Schedule, average_over_processes
from drone_kd_training.distillation.stored_views import StoredViews, frames_hash
from drone_kd_training.distillation.train_data import TrainData
from drone_kd_training.distillation.train_loader import FrameSampler, View, build_loader
from drone_kd_training.distillation.training_log import add_training_log
from drone_kd_training.distillation.uncached_dataset import NEEDS_LABELS, build_dataset
from drone_kd_training.models.checkpoints import (
    class_names,
    detect_head,
    match_classes,
    resolve_model,
)
from drone_kd_training.models.published import finish_checkpoint, hide_folders, without_folders
from drone_kd_training.models.safe_loading import read_state, write_plain
from drone_kd_training.teachers.prediction_cache import file_hash
from drone_kd_training.teachers.teachers import Teacher, open_teacher

COST = "teacher_cost.json"
STATE = "resume.pt"
# Settings of Ultralytics on which an augmented frame depends.
AUGMENTATION = (
    "imgsz", "hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective",
    "flipud", "fliplr", "bgr", "mosaic", "mixup",
)  # fmt: skip
# What Ultralytics stores of the git checkout: its path, its remote, the last commit's message.
ultralytics_trainer.__dict__["GIT"] = SimpleNamespace(
    root=None, branch=None, commit=None, message=None, origin=None
)


class DistillTrainer(DetectionTrainer):
    """Ultralytics' trainer with the distillation loss.

    It reads its configuration from the folder of the run, because Ultralytics gives the processes
    of a multi-GPU run nothing but its own settings. What `__init__` adds as callbacks is called by
    Ultralytics' loop.
    """

    # Ultralytics annotates the types that these have before its set-up.
    model: Any
    ema: Any
    optimizer: Any
    lf: Any  # factor of the learning rate, by epoch
    # Stored predictions of the teacher; None: it runs at every step.
    views: StoredViews | None = None

    def __init__(
        self, cfg=DEFAULT_CFG, overrides: dict | None = None, _callbacks: dict | None = None
    ) -> None:
        self._accumulate = 1
        self._resume_offset = 0
        self._batches_since_step = 0
        self._pending_gradients: dict[str, torch.Tensor] = {}
        self._batch_in_epoch = 0
        super().__init__(cfg, overrides, _callbacks)
        self.config = read_config(self.save_dir)
        if RANK in {-1, 0}:
            for unfinished in self.wdir.glob(".*.tmp"):  # of a run that was killed
                unfinished.unlink()
        add_training_log(self)
        if RANK != -1 and self.world_size:
            # Under torchrun: Ultralytics counts the GPUs of this machine alone.
            self.world_size = int(os.environ["WORLD_SIZE"])
        if self.device.type == "cpu":
            # Ultralytics trains on all cores but one, and loads in the training process: on a
            # small machine that costs almost half of the speed.
            self.args.workers = min(2, _cores())
            self.add_callback("on_train_start", lambda _: torch.set_num_threads(_cores()))
            self.add_callback("on_pretrain_routine_end", type(self)._mix_precision)
        self.add_callback("on_train_epoch_start", type(self)._seed_epoch)
        if self.config.distils:
            self.add_callback("on_pretrain_routine_end", type(self)._attach)
            self.add_callback("on_train_end", type(self)._report_cost)
            self.add_callback("on_train_epoch_end", type(self)._write_views)
        self.add_callback("on_pretrain_routine_end", type(self)._average_sooner)
        self.add_callback("on_pretrain_routine_end", type(self)._load_state)
        self.add_callback("on_train_start", type(self)._resume_accumulation)
        self.add_callback("on_train_epoch_start", type(self)._restore_gradients)
        self.add_callback("on_train_batch_start", type(self)._count_batch)
        self.add_callback("on_train_batch_start", type(self)._set_learning_rate)
        self.add_callback("on_model_save", type(self)._save_state)

    def check_resume(self, overrides: dict) -> None:
        """Take from an interrupted run's checkpoint no setting that `Config` refuses."""
        super().check_resume(overrides)
        if self.resume:
            allowed = ("task", "mode", "model", "data", "resume", "save_dir")
            for key in NOT_SETTABLE.difference(allowed):
                setattr(self.args, key, overrides.get(key, DEFAULT_CFG_DICT.get(key)))

    @property
    def student(self) -> Any:
        """The model that is trained, out of its DDP wrapper."""
        return unwrap_model(self.model)

    def _mix_precision(self) -> None:
        """Compute in bfloat16 on a CPU, losses aside, if ``amp=bf16``.

        Ultralytics does so on GPUs only. This runs before `_attach`: in a resumed run Ultralytics
        has switched mixed precision off by then, and the teacher's precision follows from it.
        """
        # From the run's own file: a resumed run has Ultralytics' settings from the checkpoint.
        if self.config.overrides.get("amp") != "bf16":
            return
        if self.device.type == "cpu" and not computes_in_bfloat16():
            LOGGER.warning(
                "amp=bf16 is many times slower than float32 on this processor, which has no "
                "bfloat16 instructions; leave it out"
            )
        # Ultralytics refuses "bf16" on a CPU; with True, torch's choice there is bfloat16.
        self.args.amp = self.amp = True
        if not self.config.distils:
            criterion = getattr(self.student, "criterion", None) or self.student.init_criterion()
            self.student.criterion = InFloat32(criterion)

    def _seed_epoch(self) -> None:
        """Make the random numbers of an epoch depend on seed and epoch alone.

        So a resumed run continues like an uninterrupted one. The images have their own
        (`train_loader.View`).
        """
        View(max(RANK, 0), self.epoch).seed_generators(self.config.seed)
        if self.train_loader.iterator is None:  # at the start, and after running out of memory
            self.train_loader.sampler.epoch = self.epoch
        self._batch_in_epoch = 0

    def _close_dataloader_mosaic(self) -> None:
        super()._close_dataloader_mosaic()
        sampler = self.train_loader.sampler
        sampler.epoch, sampler.first_view = self.epoch, self.config.views  # the workers restart

    def get_dataloader(
        self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train"
    ) -> Any:
        """Return Ultralytics' loader, with our own order and views of training frames."""
        if mode != "train":
            return super().get_dataloader(dataset_path, batch_size, rank, mode)
        dataset = self.build_dataset(dataset_path, mode, batch_size)
        processes = max(self.world_size, 1)
        steps = self.config.epochs_and_steps[1]
        sampler = FrameSampler(
            len(dataset),
            steps * batch_size * processes,
            self.config.views,
            self.config.seed,
            max(RANK, 0),  # among all machines; `rank` is that on this one
            processes,
        )
        dataset.seed = self.config.seed
        if self.config.views:
            # A mosaic of frames that were loaded last would be another one at each visit.
            dataset.transforms[0][0].buffer_enabled = False
        pin = self.device.type == "cuda"
        return build_loader(dataset, batch_size, self.args.workers, sampler, pin)

    @cached_property
    def teacher(self) -> Teacher:
        """The run's teacher."""
        names = tuple(self.data["names"].values())
        tile = self.config.imgsz if self.config.teacher_tiles else None
        return open_teacher(self.config.teacher, names, tile)

    def auto_batch(self, *args, **kwargs) -> int:
        """Fit the batch to the GPU's memory, including what the teacher needs."""
        if not self.config.distils or self.teacher.module is None:
            return super().auto_batch(*args, **kwargs)
        student = self.model
        self.model = _WithTeacher(student, self.teacher, self.config.teacher_imgsz)
        try:
            return super().auto_batch(*args, **kwargs)
        finally:
            self.model = student

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None):
        """Read training images at the size that the teacher sees, with stored predictions."""
        stride = max(int(self.student.stride.max()), 32)
        if mode != "train" or not self.config.distils:
            args = copy(self.args)
            args.cache = args.cache if mode == "train" or self.config.val else None
            data = {**self.data, NEEDS_LABELS: not self.config.classes}
            return build_dataset(args, img_path, batch, data, mode, stride)
        args = copy(self.args)
        args.imgsz = self.config.teacher_imgsz
        self.train_data = TrainData(self.save_dir, self.config.teacher, self.teacher, self.data)
        return self.train_data.build_dataset(args, img_path, batch, stride)

    def preprocess_batch(self, batch: dict) -> dict:
        """Downsample the images for the student, and split off what came with the labels."""
        batch = super().preprocess_batch(batch)
        if not self.config.distils:
            return batch
        if self.config.teacher_scale > 1:
            batch["teacher_img"] = batch["img"]
            batch["img"] = nn.functional.interpolate(
                batch["img"], size=(self.config.imgsz,) * 2, mode="bilinear", antialias=True
            )
        return self.train_data.split(batch)

    def build_optimizer(self, model, *args, **kwargs):
        """Match teacher and student, and train the adapters in a parameter group of their own."""
        config = self.config
        if config.steps:  # Ultralytics counts passes, and would choose by the number of frames
            batches = len(self.train_loader) * self.epochs
            kwargs["iterations"] = batches * min(1.0, self.batch_size / self.args.nbs)
        optimizer = super().build_optimizer(model, *args, **kwargs)
        if config.distils:
            heads = detect_head(unwrap_model(model)), self.teacher.head
            self.levels = match_levels(*heads, config.teacher_scale)
            self.adapters = make_adapters(config.terms, self.levels, *heads, seed=config.seed)
            self.adapters.to(self.device)
            like = next(g for g in optimizer.param_groups if g.get("param_group") == "weight")
            if params := list(self.adapters.parameters()):
                group = {**like, "params": params, "param_group": "adapter"}
                optimizer.add_param_group(group)
        return optimizer

    @property
    def accumulate(self) -> int:
        """Batches per optimizer step, as Ultralytics compares it with those since the last step.

        Ultralytics forgets that step when a run is resumed; the offset corrects its count.
        """
        return self._accumulate + self._resume_offset

    @accumulate.setter
    def accumulate(self, batches: int) -> None:
        self._accumulate = batches

    def _build_train_pipeline(self) -> None:
        # Ultralytics builds it again after running out of memory, reads `accumulate` back, and
        # starts the epoch again without gradients.
        self._batches_since_step = self._resume_offset = 0
        super()._build_train_pipeline()

    def _get_warmup_iterations(self, num_batches: int) -> int:
        """Return the steps of the warm-up: at most 3 tenths of a run that is given in steps.

        Ultralytics counts in epochs, and those of such a run have any length.
        """
        steps: int = super()._get_warmup_iterations(num_batches)
        return min(steps, 3 * num_batches * self.epochs // 10) if self.config.steps else steps

    def _count_batch(self) -> None:
        self._batches_since_step += 1
        self._batch_in_epoch += 1

    def _set_learning_rate(self) -> None:
        """Move along the schedule at every step; Ultralytics does so at every epoch.

        Its warm-up, which comes after this, stays.
        """
        progress = (self._batch_in_epoch - 1) / len(self.train_loader)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.lf(self.epoch + progress)

    def _average_sooner(self) -> None:
        """Average the weights over the last twentieth of a run's steps, as far as it is short.

        Ultralytics' average needs some 6,000 steps to begin with.
        """
        steps = max(1, len(self.train_loader) * self.epochs // self.accumulate)
        window, start = steps / 20, min(2000.0, steps / 20)
        longest = min(0.9999, 1 - 1 / max(window, 1))
        self.ema.decay = lambda updates: longest * (1 - math.exp(-updates / start))

    def _resume_accumulation(self) -> None:
        if self.start_epoch:
            # Ultralytics counts from batch -1.
            batches = self.start_epoch * len(self.train_loader)
            self._resume_offset = batches - self._batches_since_step

    def _restore_gradients(self) -> None:
        """Restore gradients that wait for an optimizer step: the loop zeroes them before."""
        parameters = self._trained_parameters()
        for name, gradient in self._pending_gradients.items():
            parameters[name].grad = gradient
        self._pending_gradients = {}

    def _trained_parameters(self) -> dict[str, nn.Parameter]:
        found = dict(self.student.named_parameters(prefix="student"))
        if self.config.distils:
            found.update(self.adapters.named_parameters(prefix="adapters"))
        return found

    def optimizer_step(self) -> None:
        """Average the adapters' gradients: DDP does so for the student alone."""
        self._batches_since_step = self._resume_offset = 0
        if self.config.distils:
            for parameter in self.adapters.parameters():
                if parameter.grad is not None:
                    parameter.grad = average_over_processes(parameter.grad)
        super().optimizer_step()

    def _attach(self) -> None:
        """Put the distillation criterion in the place of the student's."""
        student = self.student
        if getattr(student, "criterion", None) is None:
            student.criterion = student.init_criterion()
        batches = len(self.train_loader)
        schedule = Schedule(
            warmup_steps=self._get_warmup_iterations(batches),
            total_steps=self.epochs * batches,
            fades=self.config.schedule == "cosine",
            step=self.start_epoch * batches,
        )
        if self.config.quantize:  # the student before it was quantized teaches, too
            teacher = open_teacher(self.config.student, class_names(student))
            levels = match_levels(detect_head(student), teacher.head)
            student.criterion = self.float_criterion = self._criterion(
                teacher, levels, nn.ModuleDict(), ("class", "box"), replace(schedule), "kd_float"
            )
        if self.config.views and self.teacher.head is not None:
            self.views = self._open_views()
        student.criterion = self._criterion(
            self.teacher, self.levels, self.adapters, self.config.terms, schedule, "kd"
        )

    def _open_views(self) -> StoredViews:
        """Open the teacher's predictions for the augmented frames of this run."""
        config, data = self.config, self.train_loader.dataset
        folder = Path(config.view_cache or self.save_dir / "views")
        augmentation = {key: getattr(self.args, key) for key in sorted(AUGMENTATION)}
        made_by = {
            "teacher": file_hash(Path(resolve_model(config.teacher))),
            "imgsz": config.teacher_imgsz,
            "tiles": config.teacher_tiles,
            "frames": frames_hash(data.im_files),
            "seed": config.seed,
            "views": config.views,
            "augmentation": augmentation,
            "half": bool(self.amp),
            "ultralytics": ultralytics_version,
        }
        return StoredViews(folder, made_by)

    def _write_views(self) -> None:
        if self.views is not None:
            self.views.write()

    def _criterion(
        self,
        teacher: Teacher,
        levels: LevelMatch,
        adapters: nn.ModuleDict,
        terms: tuple[str, ...],
        schedule: Schedule,
        prefix: str,
    ) -> DistillationLoss:
        student = self.student
        return DistillationLoss(
            student.criterion,
            teacher,
            student,
            match_classes(class_names(student), teacher.names),
            levels,
            adapters,
            terms,
            Settings(**{f.name: getattr(self.config, f.name) for f in fields(Settings)}),
            Balance(self.config.balance, self.config.rebalance),
            schedule,
            prefix,
            bool(self.amp),
            self.train_data.thresholds,
            self.views if prefix == "kd" else None,
        )

    def _report_cost(self) -> None:
        """Log the teacher's cost and write it for the report."""
        if RANK in {-1, 0}:
            cost = self.student.criterion.cost
            found = cost.figures(time.time() - self.train_time_start)
            LOGGER.info(found.pop("text"))
            write_text(self.save_dir / COST, json.dumps(found))

    @property
    def state_file(self) -> Path:
        """What a resumed run needs beside Ultralytics' checkpoint."""
        return self.save_dir / "weights" / STATE

    def _save_state(self) -> None:
        """Write what Ultralytics' checkpoint lacks.

        That checkpoint holds the averaged weights only, and these and SGD's momentum in half
        precision: a run resumed from it differs from an uninterrupted one.
        """
        student = self.student
        state: dict[str, Any] = {
            "epoch": self.epoch,
            "student": student.state_dict(),
            "average": self.ema.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "batches_since_step": self._batches_since_step,
            "gradients": {
                name: parameter.grad
                for name, parameter in self._trained_parameters().items()
                if self._batches_since_step and parameter.grad is not None
            },
        }
        if self.config.distils:
            state["balance"] = student.criterion.balance.state()
            state["adapters"] = self.adapters.state_dict()
        if self.config.quantize:
            state["balance_before"] = self.float_criterion.balance.state()
        write_plain(self.state_file, state)

    def _load_state(self) -> None:
        """Continue exactly where an interrupted run was."""
        if not self.start_epoch or not self.state_file.is_file():
            return
        state = read_state(self.state_file, self.device)
        if state["epoch"] != self.start_epoch - 1:
            LOGGER.warning(
                "Interrupted between two files of a checkpoint: the balance of the terms and the "
                "adapters start from the beginning"
            )
            return
        student = self.student
        student.load_state_dict(state["student"])
        self.ema.ema.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        # Runs of earlier releases lack these two.
        self._batches_since_step = state.get("batches_since_step", 0)
        self._pending_gradients = state.get("gradients", {})
        if self.config.distils:
            self.adapters.load_state_dict(state["adapters"])
            student.criterion.balance = Balance(
                self.config.balance, self.config.rebalance, state["balance"]
            )
        if self.config.quantize:
            self.float_criterion.balance = Balance(
                self.config.balance, self.config.rebalance, state["balance_before"]
            )

    def label_loss_items(self, loss_items=None, prefix: str = "train"):
        """Leave out columns of terms that validation does not compute: they would read as 0."""
        named = super().label_loss_items(loss_items, prefix)
        if prefix != "val":
            return named
        kept = [k for k in named if not k.startswith("val/kd_")]
        return {k: named[k] for k in kept} if isinstance(named, dict) else kept

    def validate(self):
        """Validate only if asked to: Ultralytics always does at the last epoch."""
        return super().validate() if self.args.val else (self.metrics, self.fitness)

    def final_eval(self) -> None:
        """Make the checkpoints small; `evaluation.evaluate` measures the student."""
        if RANK in {-1, 0}:
            for path in filter(Path.exists, (self.last, self.best)):
                finish_checkpoint(path)

    def save_model(self) -> bool:
        """Write checkpoints atomically: an interrupt keeps the old ones."""
        last, best = self.last, self.best
        with ExitStack() as files:
            self.last = files.enter_context(atomic_file(last))
            if self.best_fitness == self.fitness:  # as Ultralytics decides
                self.best = files.enter_context(atomic_file(best))
            args = self.args
            try:
                hide_folders(self.ema.ema)
                self.args = without_folders(args)
                saved: bool = super().save_model()
            finally:
                self.args = args
                self.last, self.best = last, best
        return saved


class _WithTeacher(nn.Module):
    """Both models as one, for Ultralytics to measure the memory of a batch."""

    def __init__(self, student: nn.Module, teacher: Teacher, teacher_imgsz: int) -> None:
        super().__init__()
        self.student, self.module = student, teacher.module
        self.teacher = teacher
        self.teacher_imgsz = teacher_imgsz
        self.yaml, self.stride, self.names = student.yaml, student.stride, student.names

    def train(self, mode: bool = True) -> _WithTeacher:
        """Switch the student alone: the teacher stays in evaluation mode."""
        self.student.train(mode)
        return self

    def forward(self, images: torch.Tensor) -> list:
        """Return the student's and the teacher's predictions."""
        side = (self.teacher_imgsz, self.teacher_imgsz)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            prediction = self.teacher(nn.functional.interpolate(images, size=side).float(), {})
        return [self.student(images), prediction]


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1
