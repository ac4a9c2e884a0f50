# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ultralytics' trainer with the distillation criterion in the place of the detection one."""

from __future__ import annotations

import json
import os
import random
import time
from copy import copy
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn
from ultralytics.data import build_yolo_dataset
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import DEFAULT_CFG, LOGGER, RANK
from ultralytics.utils.torch_utils import strip_optimizer, unwrap_model

from drone_kd_training.data.dataset import write_text
from drone_kd_training.distillation.config import read_config
from drone_kd_training.distillation.criterion import (
    Balance,
    DistillationLoss,
    InFloat32,
    average_over_processes,
    downsample,
    make_adapters,
    match_levels,
)
from drone_kd_training.distillation.training_log import add_training_log
from drone_kd_training.models.checkpoints import UnusableModelError, class_names, match_classes
from drone_kd_training.teachers.soft_labels import extend_labels, split_batch
from drone_kd_training.teachers.teachers import Predictions, open_teacher
from drone_kd_training.teachers.teaching_dataset import REGIONS, read_regions

# Below a run's folder: frames in which not every class is labelled, with `REGIONS`.
FRAMES = "frames"
COST = "teacher_cost.json"
STATE = "resume.pt"


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
        add_training_log(self)
        if RANK != -1 and self.world_size:
            # Under torchrun: Ultralytics counts the GPUs of this machine alone.
            self.world_size = int(os.environ["WORLD_SIZE"])
        if self.device.type == "cpu":
            # Ultralytics trains on one core less than there are, and loads in the training
            # process: on a small machine that costs almost half of the speed.
            self.args.workers = min(2, _cores())
            self.add_callback("on_train_start", lambda _: torch.set_num_threads(_cores()))
            self.add_callback("on_train_start", type(self)._mix_precision)
        self.add_callback("on_train_epoch_start", type(self)._seed_epoch)
        if self.config.distils:
            self.add_callback("on_pretrain_routine_end", type(self)._attach)
        self.add_callback("on_pretrain_routine_end", type(self)._load_state)
        self.add_callback("on_model_save", type(self)._save_state)
        self.add_callback("on_train_end", type(self)._report_cost)

    def _mix_precision(self) -> None:
        """Compute in bfloat16 on a CPU, losses aside, where ``amp=bf16`` asks for it: Ultralytics
        itself does so on GPUs alone (Ultralytics callback).
        """
        # From the run's own file: a resumed run has Ultralytics' settings from the checkpoint.
        if self.config.overrides.get("amp") != "bf16":
            return
        # What Ultralytics calls bf16 it refuses on a CPU; torch's own choice there is the same.
        self.args.amp = self.amp = True
        student = unwrap_model(self.model)
        if not self.config.distils:
            criterion = getattr(student, "criterion", None) or student.init_criterion()
            student.criterion = InFloat32(criterion)

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
        tile = self.config.imgsz if self.config.teacher_tiles else None
        return open_teacher(self.config.teacher, names, tile)

    def auto_batch(self) -> int:
        """Fit the batch to the GPU's memory, with what the teacher needs beside the student."""
        if not self.config.distils or self.teacher.module is None:
            return super().auto_batch()
        student = self.model
        self.model = _WithTeacher(student, self.teacher, self.config.teacher_imgsz)
        try:
            return super().auto_batch()
        finally:
            self.model = student

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None):
        """Read training frames at the size that the teacher sees, with its answers if it has
        them ready.
        """
        if mode != "train" or not self.config.distils:
            return super().build_dataset(img_path, mode, batch)
        args = copy(self.args)
        args.imgsz = self.config.teacher_imgsz
        stride = max(int(unwrap_model(self.model).stride.max()), 32)
        dataset = build_yolo_dataset(args, img_path, batch, self.data, mode=mode, stride=stride)
        predictions = self.teacher if isinstance(self.teacher, Predictions) else None
        self.soft_scores = self.kinds = None
        regions = self.save_dir / FRAMES / REGIONS
        if predictions or regions.is_file():
            kind_of: dict[str, int] = {}
            if regions.is_file():
                self.kinds, kind_of = read_regions(regions)
            self.soft_scores, frames = extend_labels(
                dataset.labels, self.data["nc"], self.kinds, kind_of, predictions
            )
            if predictions and not frames:
                raise UnusableModelError(
                    f"{self.config.teacher}: no prediction is named like a training frame"
                )
            bare = [i for i, kind in enumerate(self.kinds or []) if not any(kind.labelled)]
            count = sum(kind_of.get(label["im_file"]) in bare for label in dataset.labels)
            LOGGER.info(
                f"{len(dataset.labels)} training frames, {count} of them without labels"
                + (f", {frames} with predictions of the teacher" if predictions else "")
            )
        return dataset

    def preprocess_batch(self, batch: dict) -> dict:
        """Reduce the frames for the student, and part what travelled with the labels."""
        batch = super().preprocess_batch(batch)
        if self.config.teacher_scale > 1 and self.config.distils:
            batch["teacher_img"] = batch["img"]
            batch["img"] = downsample(batch["img"], self.config.imgsz)
        if self.config.distils and self.soft_scores is not None:
            batch = split_batch(batch, self.data["nc"], self.kinds, self.soft_scores)
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
        batches, close = len(self.train_loader), self.args.close_mosaic
        steps = (
            self.start_epoch * batches,
            self._get_warmup_iterations(batches),
            (self.epochs - close) * batches,
            close > 0,
        )
        if config.quantize:
            student.criterion = self.before = self._learn_from_before(student, steps)
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
            amp=bool(self.amp),
        )
        student.criterion.steps = steps

    def _learn_from_before(self, student: nn.Module, steps: tuple) -> DistillationLoss:
        """The student as it was before it was quantized, as a teacher of classes and boxes."""
        names = class_names(student)
        before = open_teacher(self.config.student, names)
        heads = student.model[-1], before.head
        criterion = DistillationLoss(
            student.criterion,
            before,
            student,
            match_classes(names, before.names),
            match_levels(*heads),
            nn.ModuleDict(),
            ("class", "box"),
            self.config.temperature,
            Balance(self.config.balance),
            prefix="kd_float",
            amp=bool(self.amp),
        )
        criterion.steps = steps
        return criterion

    def _report_cost(self) -> None:
        """Say what the teacher cost, and leave it for the figures (Ultralytics callback)."""
        if RANK in {-1, 0} and self.config.distils:
            cost = unwrap_model(self.model).criterion.cost
            found = cost.figures(time.time() - self.train_time_start)
            LOGGER.info(found.pop("text"))
            write_text(self.save_dir / COST, json.dumps(found))

    @property
    def state_file(self) -> Path:
        """What a resumed run needs beside Ultralytics' checkpoint."""
        return self.save_dir / "weights" / STATE

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
        if self.config.quantize:
            state["balance_before"] = self.before.balance.state()
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
        if self.config.quantize:
            self.before.balance = Balance(self.config.balance, state["balance_before"])

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
        """Make the checkpoints small; the figures are taken by `evaluation.evaluate`."""
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


class _WithTeacher(nn.Module):
    """Both models as one, for Ultralytics to measure the memory of a batch."""

    def __init__(self, student: nn.Module, teacher, teacher_imgsz: int) -> None:
        super().__init__()
        self.student, self.module = student, teacher.module
        self.answer = teacher
        self.teacher_imgsz = teacher_imgsz
        self.yaml, self.stride, self.names = student.yaml, student.stride, student.names

    def train(self, mode: bool = True) -> _WithTeacher:
        self.student.train(mode)
        return self

    def forward(self, pictures: torch.Tensor) -> list:
        side = (self.teacher_imgsz, self.teacher_imgsz)
        with torch.no_grad(), torch.autocast(pictures.device.type, enabled=False):
            answer = self.answer(nn.functional.interpolate(pictures, size=side).float(), {})
        return [self.student(pictures), answer]


def _cores() -> int:
    return (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
