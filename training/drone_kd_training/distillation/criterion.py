# SPDX-License-Identifier: AGPL-3.0-or-later
"""The distillation criterion: L = L_detection + lambda(t) * sum(weight_i * term_i).

It wraps Ultralytics' detection criterion. What it compares (class logits, boxes, features) is
chosen by `Config.terms`; which levels it compares follows from the strides of both heads; how much
a term weighs is measured (`Balance`).
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert
from ultralytics.utils.tal import dist2bbox, make_anchors

from drone_kd_training.distillation import losses
from drone_kd_training.distillation.losses import BACKGROUND
from drone_kd_training.distillation.teacher_cost import Cost
from drone_kd_training.models.checkpoints import ClassMatch, UnusableModelError
from drone_kd_training.teachers.soft_labels import (
    Boxes,
    add_sure_answers,
    answers_count,
    assign,
    assigned_by,
    masked_negatives,
    negatives_kept,
)

# What `Config.terms` can name: class probabilities per class (sigmoid) or over the classes
# (Hinton's form); box distributions, or decoded boxes where a head has none; both of the student's
# features seen through the teacher's head (CrossKD); the features that enter the head (PKD).
# "assign" is no term of its own: the labels are given to the anchors that the teacher answers best
# (LAD, Nguyen et al. 2021, arXiv:2108.10520), not to those that the student does. A teacher that
# answers with boxes alone leaves that as it is.
TERMS = ("class", "softmax", "box", "cross", "feature", "assign")
# What a teacher without a Detect head can teach.
BOX_TERMS = {"class", "box", "assign"}
# Gradients are measured on every fifth of the first batches: a measurement costs a backward pass
# through the head for each term.
CALIBRATION_BATCHES, CALIBRATION_STEP = 50, 5


class Balance:
    """Weights of the terms from measured gradients: calibrated over the first batches, then fixed.

    A term's weight is share * sum(|gradient of the detection loss|) / sum(|gradient of the term|),
    both taken on the features that enter the student's head. Distillers whose terms are not
    balanced end below the plain student.
    """

    def __init__(self, share: float, state: dict | None = None) -> None:
        self.share = share
        self.batches: int = (state or {}).get("batches", 0)
        self.sums: dict[str, list[float]] = (state or {}).get("sums", {})

    @property
    def due(self) -> bool:
        """Whether gradients are to be measured on this batch."""
        return self.batches < CALIBRATION_BATCHES and self.batches % CALIBRATION_STEP == 0

    def measure(self, detection: Tensor, terms: dict[str, Tensor], features: list[Tensor]) -> None:
        """Add one batch: the detection loss and each term, all scalars, as functions of
        ``features``.
        """
        own_reference = _gradient_norm(detection, features)
        for name, term in terms.items():
            norm = _gradient_norm(term, features)
            # All processes of a multi-GPU run weigh alike.
            reference, norm = average_over_processes(torch.tensor([own_reference, norm])).tolist()
            if math.isfinite(reference) and math.isfinite(norm):
                sums = self.sums.setdefault(name, [0.0, 0.0])
                sums[0] += reference
                sums[1] += norm

    def weight(self, name: str) -> float:
        """The weight of a term; 0 as long as its gradient has not been seen."""
        detection, term = self.sums.get(name, (0.0, 0.0))
        return self.share * detection / term if term > 0 else 0.0

    def state(self) -> dict:
        """What a resumed run needs to go on with the same weights."""
        return {"batches": self.batches, "sums": self.sums}


def _gradient_norm(loss: Tensor, inputs: list[Tensor]) -> float:
    gradients = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
    return math.sqrt(sum(float(g.float().square().sum()) for g in gradients if g is not None))


def average_over_processes(values: Tensor) -> Tensor:
    """The mean of a tensor over the processes of a multi-GPU run; itself where there is one."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    shared = values.to(device)
    dist.all_reduce(shared)
    return (shared / dist.get_world_size()).to(values)


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


@dataclass(frozen=True)
class LevelMatch:
    """Which level of the student's head is compared with which of the teacher's: pairs of indices.

    ``scale``: how much larger the teacher's picture is; its stride 16 at twice the size is the
    same grid as the student's stride 8. No pairs: the teacher's boxes are given to the student's
    anchors as labels are.
    """

    pairs: tuple[tuple[int, int], ...]
    student_strides: tuple[int, ...]
    teacher_strides: tuple[int, ...]
    scale: float

    def table(self) -> str:
        """One line per level of the student."""
        teacher = dict(self.pairs)
        seen = f" of a picture {self.scale:g} times as large" if self.scale > 1 else ""
        lines = [f"{'student level':<24} teacher level"]
        alone = "- (labels only)" if self.pairs else "- (the teacher's boxes)"
        for i, stride in enumerate(self.student_strides):
            found = f"stride {self.teacher_strides[teacher[i]]}{seen}" if i in teacher else alone
            lines.append(f"{f'stride {stride}':<24} {found}")
        if not self.teacher_strides:
            return "the teacher has no levels: its boxes are given to the student's anchors"
        return "\n".join(lines)


def match_levels(student_head, teacher_head, scale: float = 1) -> LevelMatch:
    """Match the levels of two Detect heads by the size of their grids; ``teacher_head`` None: a
    teacher without one.
    """
    student, teacher = (
        () if head is None else tuple(int(s) for s in head.stride)
        for head in (student_head, teacher_head)
    )
    pairs = tuple(
        (i, teacher.index(stride * scale))
        for i, stride in enumerate(student)
        if stride * scale in teacher
    )
    return LevelMatch(pairs, student, teacher, scale)


def make_adapters(
    terms: tuple[str, ...], levels: LevelMatch, student_head, teacher_head, seed: int
) -> nn.ModuleDict:
    """The 1x1 convolutions that bring the student's channels to the teacher's, per matched level.

    They are trained with the student and thrown away; where both have the same number of channels
    in the head, nothing is needed. Their random start does not touch the run's random numbers, so
    that the student sees the same batches with and without them.
    """

    def adapter(width: int, wanted: int, always: bool) -> nn.Module:
        return nn.Conv2d(width, wanted, 1) if always or width != wanted else nn.Identity()

    found = nn.ModuleDict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if "cross" in terms:
            for name in ("cv2", "cv3"):
                branches = getattr(student_head, name), getattr(teacher_head, name)
                found[name] = nn.ModuleList(
                    adapter(branches[0][i][-1].in_channels, branches[1][j][-1].in_channels, False)
                    for i, j in levels.pairs
                )
        if "feature" in terms:
            found["feature"] = nn.ModuleList(
                adapter(_input_width(student_head.cv2[i]), _input_width(teacher_head.cv2[j]), True)
                for i, j in levels.pairs
            )
    return found


def _input_width(branch: nn.Sequential) -> int:
    return next(m for m in branch.modules() if isinstance(m, nn.Conv2d)).in_channels


class InFloat32:
    """A detection criterion for a network that computes in half precision, called like it."""

    def __init__(self, detection) -> None:
        self.detection = detection

    def __deepcopy__(self, memo: dict):
        return deepcopy(self.detection, memo)

    def update(self) -> None:
        """End of an epoch: YOLO26's criterion moves its own schedule."""
        if hasattr(self.detection, "update"):
            self.detection.update()

    @property
    def innermost(self):
        """Ultralytics' own criterion, also where another teacher's lies between."""
        inner = self.detection
        return inner.innermost if isinstance(inner, InFloat32) else inner

    def __call__(self, preds, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(batch["img"].device.type, enabled=False):
            return self.loss(preds, batch)

    def loss(self, preds, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """With autocast off."""
        return self.detection(in_float32(preds), batch)


class DistillationLoss(InFloat32):
    """Ultralytics' detection criterion plus the distillation terms, called like the former.

    Not an nn.Module on purpose: as an attribute of the student it must add neither the teacher's
    parameters nor its own to the student's state. A deep copy (EMA, checkpoints) is the plain
    detection criterion.
    """

    def __init__(
        self,
        detection,
        teacher,
        student: nn.Module,
        match: ClassMatch,
        levels: LevelMatch,
        adapters: nn.ModuleDict,
        terms: tuple[str, ...],
        temperature: float,
        balance: Balance,
        prefix: str = "kd",
        amp: bool = False,
    ) -> None:
        device = next(student.parameters()).device
        super().__init__(detection if isinstance(detection, InFloat32) else InFloat32(detection))
        self.teacher = teacher
        if teacher.module is not None:
            teacher.module.to(device)
        self.student_head, self.teacher_head = student.model[-1], teacher.head
        self.student_classes, self.teacher_classes = (
            torch.tensor(x, device=device) for x in zip(*match.pairs, strict=True)
        )
        self.levels = levels
        self.adapters = adapters.to(device)
        self.chosen = terms
        self.temperature = temperature
        self.balance = balance
        self.prefix = prefix  # of the names of the terms, where two teachers teach
        self.cost = Cost(device)
        # Set by the trainer: step, warm-up, total, closes.
        self.steps = (0, 1, 1, False)
        # A Detect teacher computes in half precision where the training does (``amp``), and on a
        # processor that has bfloat16: it takes half of the time, and its answers hardly move.
        self.half = teacher.head is not None and (
            amp or (device.type == "cpu" and computes_in_bfloat16())
        )
        self.hidden: dict[tuple[str, int], Tensor] = {}
        if "cross" in terms:
            for name in ("cv2", "cv3"):
                for i, _ in levels.pairs:
                    getattr(self.student_head, name)[i][0].register_forward_hook(
                        self._keep(name, i)
                    )

    def _keep(self, name: str, level: int):
        def hook(module: nn.Module, inputs, output: Tensor) -> None:
            if module.training:  # not while a validation runs the student itself
                self.hidden[name, level] = output

        return hook

    def terms(self, student: dict, answer: dict | Boxes, batch: dict) -> dict[str, Tensor]:
        """Name -> scalar loss, of one batch of the student's raw predictions and the teacher's
        answer.
        """
        if self.levels.pairs:
            return self._terms_of_anchors(student, answer)
        size = _side(student, self.student_head)
        answer = self._boxes(answer, size * self.levels.scale)
        return self._terms_of_boxes(student, answer, batch)

    def _terms_of_boxes(self, student: dict, answer: Boxes, batch: dict) -> dict[str, Tensor]:
        levels = list(range(len(student["feats"])))
        logits = take_levels(student, "scores", levels)[..., self.student_classes]
        grids, strides = student["feats"], self.student_head.stride
        raw = take_levels(student, "boxes", levels)
        xyxy = decode_boxes(raw, self.student_head.reg_max, grids, strides)
        size = _side(student, self.student_head)
        answer = Boxes(answer.frame, answer.cxcywh, answer.scores[:, self.teacher_classes])
        wanted, wanted_xyxy = assign(
            answer.without_duplicates(BACKGROUND),
            logits.detach().sigmoid(),
            xyxy.detach(),
            _centres(grids, strides),
            [int(s) for s in strides],
            size,
        )
        found = {}
        if "class" in self.chosen:
            counts = None
            if "areas" in batch:
                full = wanted.new_zeros(*wanted.shape[:2], self.student_head.nc)
                full[..., self.student_classes] = wanted
                counts = answers_count(batch, full, _centres(grids, strides) / size)
                counts = counts[..., self.student_classes]
            found["kd_cls_loss"] = losses.class_response_sigmoid(
                logits, torch.logit(wanted, eps=1e-4), self.temperature, counts
            )
        if "box" in self.chosen:
            found["kd_box_loss"] = losses.decoded_box(xyxy, wanted_xyxy, wanted.amax(-1), size)
        return found

    def _terms_of_anchors(self, student: dict, teacher: dict) -> dict[str, Tensor]:
        own = [i for i, _ in self.levels.pairs]
        logits_s = take_levels(student, "scores", own)[..., self.student_classes]
        theirs = [j for _, j in self.levels.pairs]
        logits_t = take_levels(teacher, "scores", theirs)[..., self.teacher_classes]
        confidence = losses.teacher_confidence(logits_t)
        found: dict[str, Tensor] = {}
        if "class" in self.chosen:
            found["kd_cls_loss"] = losses.class_response_sigmoid(
                logits_s, logits_t, self.temperature
            )
        if "softmax" in self.chosen:
            found["kd_softmax_loss"] = losses.class_response_softmax(
                logits_s, logits_t, self.temperature
            )
        if "box" in self.chosen:
            raw = take_levels(student, "boxes", own)
            name, loss = self._box_loss(
                raw, self.student_head, student["feats"], teacher, confidence
            )
            found[f"kd_{name}_loss"] = loss
        if "cross" in self.chosen:
            logits_x = self._through_teacher("cv3")[..., self.teacher_classes]
            found["kd_cross_cls_loss"] = losses.class_response_sigmoid(
                logits_x, logits_t, self.temperature
            )
            raw = self._through_teacher("cv2")
            name, loss = self._box_loss(
                raw, self.teacher_head, student["feats"], teacher, confidence
            )
            found[f"kd_cross_{name}_loss"] = loss
        if "feature" in self.chosen:
            found["kd_feature_loss"] = self._feature_loss(student, teacher, confidence)
        return found

    def _feature_loss(self, student: dict, teacher: dict, confidence: Tensor) -> Tensor:
        """Compare what enters both heads, level by level; ``confidence`` (B, N) of the levels."""
        grids = [student["feats"][i].shape[-2:] for i, _ in self.levels.pairs]
        weights = confidence.split([h * w for h, w in grids], dim=-1)
        pairs = zip(self.adapters["feature"], self.levels.pairs, weights, grids, strict=True)
        terms = [
            losses.feature_correlation(
                adapt(student["feats"][i]), teacher["feats"][j], weight.unflatten(-1, grid)
            )
            for adapt, (i, j), weight, grid in pairs
        ]
        return sum(terms) / len(terms)

    def _box_loss(
        self, raw: Tensor, head, feats: list[Tensor], teacher: dict, confidence: Tensor
    ) -> tuple[str, Tensor]:
        """Compare raw boxes (B, N, 4R) on the student's grid, written as ``head`` writes them."""
        own, theirs = zip(*self.levels.pairs, strict=True)
        raw_t = take_levels(teacher, "boxes", list(theirs))
        bins = head.reg_max
        if bins == self.teacher_head.reg_max and bins > 1:
            sides = (x.unflatten(-1, (4, bins)) for x in (raw, raw_t))
            return "dfl", losses.dfl_divergence(*sides, confidence)
        # Both in pixels of the student's picture, on the same grid.
        grids = [feats[i] for i in own]
        strides = self.student_head.stride[list(own)]
        boxes = (
            decode_boxes(x, h.reg_max, grids, strides)
            for x, h in ((raw, head), (raw_t, self.teacher_head))
        )
        size = _side({"feats": feats}, self.student_head)
        return "box", losses.decoded_box(*boxes, confidence, size)

    def _through_teacher(self, name: str) -> Tensor:
        """What the rest of the teacher's branch makes of the student's hidden features: (B, N,
        channels).
        """
        outputs = []
        for adapt, (i, j) in zip(self.adapters[name], self.levels.pairs, strict=True):
            rest = getattr(self.teacher_head, name)[j][1:]
            outputs.append(rest(adapt(self.hidden.pop((name, i)).float())).flatten(2))
        return torch.cat(outputs, dim=-1).transpose(1, 2)

    def _boxes(self, answer: dict | Boxes, size: float) -> Boxes:
        """The answer as boxes, scores in the teacher's classes; ``size`` of its picture."""
        if isinstance(answer, Boxes):
            return answer
        levels = list(range(len(answer["feats"])))
        raw = take_levels(answer, "boxes", levels)
        strides = self.teacher_head.stride
        xyxy = decode_boxes(raw, self.teacher_head.reg_max, answer["feats"], strides)
        scores = take_levels(answer, "scores", levels).sigmoid()
        frame, anchor = (scores.amax(-1) >= BACKGROUND).nonzero(as_tuple=True)
        cxcywh = box_convert(xyxy[frame, anchor] / size, "xyxy", "cxcywh")
        return Boxes(frame, cxcywh, scores[frame, anchor])

    def _answers(self, answer: dict | Boxes, size: float) -> Boxes:
        """The answer as boxes without duplicates, scores in the student's classes."""
        answer = self._boxes(answer, size)
        scores = answer.scores.new_zeros(len(answer.frame), self.student_head.nc)
        scores[:, self.student_classes] = answer.scores[:, self.teacher_classes]
        return Boxes(answer.frame, answer.cxcywh, scores).without_duplicates(BACKGROUND)

    def _alignment(self, student: dict, teacher: dict) -> tuple[Tensor, Tensor]:
        """Probabilities (B, N, C) and boxes (B, N, 4) in pixels that decide which anchor learns
        which label: at each anchor those of the one that is surer of an object.

        So a teacher that knows nothing of a class, or of the kind of picture, changes nothing.
        """
        own, theirs = (list(x) for x in zip(*self.levels.pairs, strict=True))
        levels = list(range(len(student["feats"])))
        scores = take_levels(student, "scores", levels).detach().sigmoid()
        grids, strides = student["feats"], self.student_head.stride
        raw = take_levels(student, "boxes", levels).detach()
        xyxy = decode_boxes(raw, self.student_head.reg_max, grids, strides)
        first = 0
        for level, grid in enumerate(grids):
            count = grid.shape[-2] * grid.shape[-1]
            if level in own:
                anchors = slice(first, first + count)
                other = [theirs[own.index(level)]]
                logits = take_levels(teacher, "scores", other)[..., self.teacher_classes]
                answer = scores[:, anchors].clone()
                answer[..., self.student_classes] = logits.sigmoid()
                boxes = decode_boxes(
                    take_levels(teacher, "boxes", other),
                    self.teacher_head.reg_max,
                    [grid],
                    strides[level : level + 1],
                )
                surer = logits.sigmoid().amax(-1) >= scores[:, anchors].amax(-1)
                scores[:, anchors][surer] = answer[surer]
                xyxy[:, anchors][surer] = boxes[surer]
            first += count
        return scores, xyxy

    def loss(self, preds, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """The detection loss and the terms, each times its weight."""
        step, *rest = self.steps
        scale = schedule(step, *rest)
        self.steps = (step + 1, *rest)
        student = raw_predictions(in_float32(preds))
        partial = "areas" in batch and batch["areas"].partial
        answer = None
        if scale > 0 or partial:  # else the teacher has nothing to say, and is not run either
            picture = batch["teacher_img" if self.levels.scale > 1 else "img"]
            half = torch.autocast(picture.device.type, enabled=self.half)
            with self.cost, torch.no_grad(), half:
                answer = self.teacher(picture.float(), batch)
            if not isinstance(answer, Boxes):
                answer = in_float32(answer)
        with ExitStack() as changed:
            if partial:
                found = self._answers(answer, picture.shape[-1])
                batch = add_sure_answers(batch, found)
                centres = _centres(student["feats"], self.student_head.stride)
                size = _side(student, self.student_head)
                kept = negatives_kept(batch, found, centres / size)
                changed.enter_context(masked_negatives(self.innermost, kept))
            if "assign" in self.chosen and self.levels.pairs and scale > 0:
                others = self._alignment(student, answer)
                changed.enter_context(assigned_by(self.innermost, *others))
            loss, items = self.detection(preds, batch)
        if scale == 0:
            self.hidden.clear()
            zero = loss.detach().sum() * 0
            names = self.balance.sums
            return loss, {
                **items,
                **dict.fromkeys(names, zero),
                **dict.fromkeys(map(_scale_name, names), zero),
            }
        terms = {
            name.replace("kd", self.prefix, 1): term
            for name, term in self.terms(student, answer, batch).items()
        }
        # Ultralytics sums over frames: so do we, or the balance would move with the batch.
        size = len(batch["img"])
        if self.balance.due:
            self.balance.measure(
                loss.sum(),
                {k: term * size for k, term in terms.items()},
                raw_predictions(preds)["feats"],  # the ones that the head has seen
            )
        self.balance.batches += 1
        added = loss.new_zeros(())
        for name, term in terms.items():
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


def _side(raw: dict, head) -> float:
    """Side of the input in pixels."""
    return float(raw["feats"][0].shape[-1] * head.stride[0])


def _centres(grids: list[Tensor], strides: Tensor) -> Tensor:
    """Of the anchors, (N, 2) in pixels."""
    anchors, steps = make_anchors(grids, strides, 0.5)
    return anchors * steps


def _scale_name(name: str) -> str:
    return name.replace("_loss", "_scale")


def computes_in_bfloat16() -> bool:
    """Whether this processor has instructions for it."""
    known = torch.cpu.get_capabilities()
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def raw_predictions(preds) -> dict[str, Tensor]:
    """The {boxes (B, 4R, N), scores (B, C, N), feats} of a Detect head, in training and eval mode
    alike.

    A head with two branches (YOLO26) is compared on the one-to-many branch: one-to-one sees
    detached features, so that nothing would reach the backbone.
    """
    preds = preds[1] if isinstance(preds, tuple) else preds
    return preds.get("one2many", preds)


def in_float32(preds):
    """A head's output with everything in float32.

    Features, too: Ultralytics gives the anchors their type, and bfloat16 rounds those beyond the
    128th cell.
    """
    if isinstance(preds, dict):
        return {name: in_float32(value) for name, value in preds.items()}
    if isinstance(preds, (list, tuple)):
        return type(preds)(map(in_float32, preds))
    return preds.float()


def take_levels(raw: dict, key: str, levels: list[int]) -> Tensor:
    """The anchors of some levels of raw predictions, as (B, N, channels)."""
    counts = [f.shape[-2] * f.shape[-1] for f in raw["feats"]]
    parts = raw[key].split(counts, dim=-1)
    return torch.cat([parts[i] for i in levels], dim=-1).transpose(1, 2)


def decode_boxes(raw: Tensor, bins: int, grids: list[Tensor], strides: Tensor) -> Tensor:
    """Raw boxes (B, N, 4 * bins) on ``grids`` -> (B, N, 4), xyxy in pixels of ``strides``."""
    anchors, steps = make_anchors(grids, strides, 0.5)
    if bins > 1:
        raw = raw.unflatten(-1, (4, bins)).softmax(-1) @ torch.arange(
            bins, device=raw.device, dtype=raw.dtype
        )
    return dist2bbox(raw, anchors, xywh=False) * steps


def downsample(pictures: Tensor, size: int) -> Tensor:
    """Square pictures (B, C, S, S) reduced to a side of ``size`` pixels, without aliasing."""
    return F.interpolate(pictures, size=(size, size), mode="bilinear", antialias=True)
