# SPDX-License-Identifier: AGPL-3.0-or-later
"""Train a student with its teacher: L = L_detection + lambda(t) * sum(weight_i * term_i).

    python -m training distill --data data.yaml --teacher teacher.pt --student yolo11n.yaml
    --output runs/car python -m training distill ... --output runs/car --resume          # after
    an interruption python -m training distill --teacher none ...                      # the
    student alone (or a teacher to be)

The loop, the detection loss, augmentation and checkpoints are Ultralytics'; what is added is one
wrapper round the detection criterion (`DistillationLoss`), so that the checkpoint holds the
student alone and loads anywhere.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
import yaml
from torch import Tensor
from ultralytics import __version__ as ultralytics_version
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import DEFAULT_CFG, DEFAULT_CFG_DICT, LOGGER
from ultralytics.utils.tal import dist2bbox, make_anchors
from ultralytics.utils.torch_utils import unwrap_model

from training import losses
from training.data import image_paths, load_data, write_text
from training.evaluate import evaluate
from training.models import (
    ClassMatch,
    UnusableModelError,
    class_names,
    cost,
    load_model,
    match_classes,
    resolve_model,
)

RESPONSES = {"sigmoid": losses.class_response_sigmoid, "softmax": losses.class_response_softmax}
CALIBRATION_BATCHES = 50
NO_TEACHER = "none"


@dataclass(frozen=True)
class Config:
    """What a run is made of; written to ``config.yaml`` in its output folder, and read back by
    --resume.

    ``balance`` is the share that the gradient of each distillation term has of the detection
    loss's gradient on the same predictions, at lambda = 1. ``overrides`` are Ultralytics' own
    training settings (lr0, mosaic, ...).
    """

    data: str
    teacher: str
    student: str
    epochs: int = 100
    imgsz: int = 640
    batch: int = 16
    device: str = ""
    seed: int = 0
    temperature: float = 1.0
    response: str = "sigmoid"
    balance: float = 0.2
    fraction: float = 1.0
    val: bool = True
    overrides: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks = (
            ("epochs", self.epochs >= 1, "1 or more"),
            ("imgsz", self.imgsz >= 32 and self.imgsz % 32 == 0, "a multiple of 32"),
            ("batch", self.batch >= 1, "1 or more"),
            ("temperature", self.temperature > 0, "above 0"),
            ("balance", 0 < self.balance <= 1, "above 0 and at most 1"),
            ("fraction", 0 < self.fraction <= 1, "above 0 and at most 1"),
            ("response", self.response in RESPONSES, " or ".join(RESPONSES)),
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

    @property
    def distils(self) -> bool:
        """Whether there is a teacher."""
        return self.teacher != NO_TEACHER


class Balance:
    """Weights of the terms from measured gradients: calibrated over the first batches, then fixed.

    A term's weight is share * sum(|gradient of the detection loss|) / sum(|gradient of the term|),
    both taken on the prediction that the term compares. Distillers whose terms are not balanced
    end below the plain student.
    """

    def __init__(self, share: float, state: dict | None = None) -> None:
        self.share = share
        self.batches: int = (state or {}).get("batches", 0)
        self.sums: dict[str, list[float]] = (state or {}).get("sums", {})

    @property
    def calibrating(self) -> bool:
        """Whether gradients are still being measured."""
        return self.batches < CALIBRATION_BATCHES

    def measure(self, detection: Tensor, terms: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Add one batch: the detection loss, and per name (term, prediction it compares)."""
        for name, (term, prediction) in terms.items():
            norms = [
                torch.autograd.grad(loss, prediction, retain_graph=True)[0].norm().item()
                for loss in (detection, term)
            ]
            if all(map(math.isfinite, norms)):
                sums = self.sums.setdefault(name, [0.0, 0.0])
                sums[0] += norms[0]
                sums[1] += norms[1]
        self.batches += 1

    def weight(self, name: str) -> float:
        """The weight of a term; 0 as long as its gradient has not been seen."""
        detection, term = self.sums.get(name, (0.0, 0.0))
        return self.share * detection / term if term > 0 else 0.0

    def state(self) -> dict:
        """What a resumed run needs to go on with the same weights."""
        return {"batches": self.batches, "sums": self.sums}


def schedule(step: int, warmup_steps: int, total_steps: int, closes: bool) -> float:
    """lambda(t): a linear ramp over warm-up times a cosine from 1 to 0.1 over ``total_steps``.

    ``closes``: the last epochs train on whole frames (mosaic closed), from labels alone: 0 from
    total_steps on.
    """
    if closes and step >= total_steps:
        return 0.0
    ramp = min(1.0, (step + 1) / max(warmup_steps, 1))
    return ramp * (
        0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(step / max(total_steps, 1), 1.0)))
    )


class DistillationLoss:
    """Ultralytics' detection criterion plus the distillation terms, called like the former.

    Not an nn.Module on purpose: as an attribute of the student it must add neither the teacher's
    parameters nor its own to the student's state. A deep copy (EMA, checkpoints) is the plain
    detection criterion.
    """

    def __init__(
        self,
        detection,
        teacher: torch.nn.Module,
        student: torch.nn.Module,
        match: ClassMatch,
        config: Config,
    ) -> None:
        device = next(student.parameters()).device
        self.detection = detection
        self.teacher = teacher.to(device).eval().requires_grad_(False)
        self.student_head, self.teacher_head = student.model[-1], self.teacher.model[-1]
        self.student_classes, self.teacher_classes = (
            torch.tensor(x, device=device) for x in zip(*match.pairs, strict=True)
        )
        self.temperature = config.temperature
        self.response = RESPONSES[config.response]
        self.balance = Balance(config.balance)
        self.steps = (
            0,
            1,
            1,
            False,
        )  # step, warm-up steps, total steps, closes: set by the trainer
        check_levels(self.student_head, self.teacher_head)

    def __deepcopy__(self, memo: dict):
        return deepcopy(self.detection, memo)

    def update(self) -> None:
        """End of an epoch: YOLO26's criterion moves its own schedule."""
        if hasattr(self.detection, "update"):
            self.detection.update()

    def terms(self, student: dict, teacher: dict) -> dict[str, tuple[Tensor, Tensor]]:
        """Name -> (scalar loss, the student's prediction that it compares) for one batch of raw
        predictions.
        """
        logits_s = student["scores"].transpose(1, 2)[..., self.student_classes]
        logits_t = teacher["scores"].transpose(1, 2)[..., self.teacher_classes]
        confidence = losses.teacher_confidence(logits_t)
        found = {
            "kd_cls_loss": (self.response(logits_s, logits_t, self.temperature), student["scores"])
        }
        bins = self.student_head.reg_max
        if bins == self.teacher_head.reg_max and bins > 1:
            sides = [
                x["boxes"].transpose(1, 2).unflatten(-1, (4, bins)) for x in (student, teacher)
            ]
            found["kd_dfl_loss"] = (losses.dfl_divergence(*sides, confidence), student["boxes"])
        else:
            boxes = [
                decode_boxes(h, x)
                for h, x in ((self.student_head, student), (self.teacher_head, teacher))
            ]
            size = float(student["feats"][0].shape[-1] * self.student_head.stride[0])
            found["kd_box_loss"] = (losses.decoded_box(*boxes, confidence, size), student["boxes"])
        return found

    def __call__(self, preds, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        loss, items = self.detection(preds, batch)
        step, *rest = self.steps
        scale = schedule(step, *rest)
        self.steps = (step + 1, *rest)
        student = raw_predictions(preds)
        if scale == 0.0:  # the teacher has nothing to say any more, so it is not run either
            zero = loss.detach().sum() * 0
            names = self.balance.sums
            return loss, {
                **items,
                **dict.fromkeys(names, zero),
                **dict.fromkeys(map(_scale_name, names), zero),
            }
        with torch.no_grad(), torch.autocast(batch["img"].device.type, enabled=False):
            teacher = raw_predictions(self.teacher(batch["img"].float()))
        terms = self.terms(student, teacher)
        size = len(
            batch["img"]
        )  # Ultralytics sums over frames: so do we, or the balance would move with the batch
        if self.balance.calibrating:
            self.balance.measure(
                loss.sum(), {k: (term * size, x) for k, (term, x) in terms.items()}
            )
        added = loss.new_zeros(())
        for name, (term, _) in terms.items():
            if not torch.isfinite(term):
                raise UnusableModelError(
                    f"{name} is {term.item()}: the teacher's output is not finite on this batch"
                )
            weight = scale * self.balance.weight(name)
            added = added + weight * term * size
            items = {
                **items,
                name: term.detach(),
                _scale_name(name): term.detach().new_tensor(weight),
            }
        return torch.cat([loss.flatten(), added.view(1)]), items


def _scale_name(name: str) -> str:
    return name.replace("_loss", "_scale")


def raw_predictions(preds) -> dict[str, Tensor]:
    """The {boxes (B, 4R, N), scores (B, C, N), feats} of a Detect head, in training and eval mode
    alike.

    A head with two branches (YOLO26) is compared on the one-to-many branch: one-to-one sees
    detached features, so that nothing would reach the backbone.
    """
    preds = preds[1] if isinstance(preds, tuple) else preds
    return preds.get("one2many", preds)


def decode_boxes(head, raw: dict) -> Tensor:
    """Decoded boxes (B, N, 4), xyxy in input pixels, of a head's raw predictions."""
    anchors, strides = make_anchors(raw["feats"], head.stride, 0.5)
    distance = raw["boxes"].transpose(1, 2)
    if head.reg_max > 1:
        bins = torch.arange(head.reg_max, device=distance.device, dtype=distance.dtype)
        distance = distance.unflatten(-1, (4, head.reg_max)).softmax(-1) @ bins
    return dist2bbox(distance, anchors, xywh=False) * strides


def check_levels(student_head, teacher_head) -> None:
    """Both heads must predict at the same strides.

    Raises:
        UnusableModelError: with both lists.
    """
    student, teacher = ([int(s) for s in head.stride] for head in (student_head, teacher_head))
    if student != teacher:
        raise UnusableModelError(
            f"student and teacher must predict at the same strides: student {student}, "
            f"teacher {teacher}"
        )


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
        if self.config.distils:
            self.add_callback("on_pretrain_routine_end", attach_teacher)
            self.add_callback("on_model_save", save_balance)

    def label_loss_items(self, loss_items=None, prefix: str = "train"):
        """Leave out columns of terms that validation does not compute: they would read as 0."""
        named = super().label_loss_items(loss_items, prefix)
        if prefix != "val":
            return named
        kept = [k for k in named if not k.startswith("val/kd_")]
        return {k: named[k] for k in kept} if isinstance(named, dict) else kept

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


def attach_teacher(trainer: DistillTrainer) -> None:
    """Put the distillation loss in the place of the student's criterion (Ultralytics callback)."""
    config = trainer.config
    student = unwrap_model(trainer.model)
    teacher, _ = load_model(config.teacher)
    match = match_classes(class_names(student), class_names(teacher))
    if getattr(student, "criterion", None) is None:
        student.criterion = student.init_criterion()
    student.criterion = DistillationLoss(student.criterion, teacher, student, match, config)
    batches, epochs, close = len(trainer.train_loader), trainer.epochs, trainer.args.close_mosaic
    warmup = trainer._get_warmup_iterations(batches)
    student.criterion.steps = (
        trainer.start_epoch * batches,
        warmup,
        (epochs - close) * batches,
        close > 0,
    )
    state = trainer.save_dir / "balance.json"
    if trainer.start_epoch and state.is_file():
        student.criterion.balance = Balance(
            config.balance, json.loads(state.read_text(encoding="utf-8"))
        )


def save_balance(trainer: DistillTrainer) -> None:
    """Keep the calibrated weights beside each checkpoint (Ultralytics callback)."""
    balance = unwrap_model(trainer.model).criterion.balance
    write_text(trainer.save_dir / "balance.json", json.dumps(balance.state(), indent=1))


def read_config(output: Path) -> Config:
    """Read the ``config.yaml`` of a run's folder."""
    return Config(**yaml.safe_load((Path(output) / "config.yaml").read_text(encoding="utf-8")))


def distill(config: Config, output: Path, resume: bool = False) -> dict:
    """Train, evaluate and leave ``best.pt``, ``metrics.json``, ``results.csv``, ``config.yaml``,
    ``curves.png``.

    Args:
        config: the run; with ``resume`` the one in the folder counts.
        output: the run's folder: new or empty, or with ``resume`` one that was interrupted.

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

    data = load_data(config.data)
    student_source = resolve_model(config.student)
    if student_source.endswith(".pt"):
        load_model(student_source)  # refuse what is no detector before anything is written
    teacher = load_model(config.teacher)[0] if config.distils else None
    if teacher is not None:
        LOGGER.info(match_classes(data.names, class_names(teacher)).table())

    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "config.yaml", yaml.safe_dump(asdict(config), sort_keys=False))
    if config.fraction < 1:
        data = replace(data, train=_thin(data.train, config.fraction, output / "train.txt"))
    resolved = data.write_resolved(output / "data.yaml")
    started = time.time()
    trainer = DistillTrainer(overrides=_overrides(config, student_source, resolved, output))
    trainer.train()

    student, _ = load_model(str(output / "weights" / "best.pt"))
    metrics = {
        "student": {
            **evaluate(student, resolved, imgsz=config.imgsz),
            **cost(student, config.imgsz),
        },
        "teacher": None
        if teacher is None
        else {**evaluate(teacher, resolved, imgsz=config.imgsz), **cost(teacher, config.imgsz)},
        "epochs": config.epochs,
        "imgsz": config.imgsz,
        "seed": config.seed,
        "seconds": round(time.time() - started, 1),
        "versions": {"ultralytics": ultralytics_version, "torch": torch.__version__},
    }
    plot_curves(output / "results.csv", output / "curves.png")
    temporary = output / ".best.pt.tmp"
    shutil.copyfile(output / "weights" / "best.pt", temporary)
    os.replace(temporary, output / "best.pt")
    write_text(
        done, json.dumps(metrics, indent=1)
    )  # last: its presence means that the run is complete
    return metrics


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
    names += [c for c in table.columns if c.startswith("metrics/mAP")]
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
