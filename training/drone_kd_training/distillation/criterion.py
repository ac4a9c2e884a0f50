# SPDX-License-Identifier: AGPL-3.0-or-later
"""The distillation criterion: L = L_detection + lambda(t) * sum(weight_i * term_i).

It wraps Ultralytics' detection criterion. ``Config.terms`` chooses the terms (`terms.TERMS`), the
strides of both heads decide which levels they compare (`levels`), and measured gradients give
their weights (`loss_balancing`).
"""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import Detect

from drone_kd_training.distillation import heads
from drone_kd_training.distillation.aligned_predictions import (
    BoxComparison,
    Comparison,
    LevelComparison,
    ModelPair,
)
from drone_kd_training.distillation.box_assignment import guided_criterion
from drone_kd_training.distillation.levels import LevelMatch
from drone_kd_training.distillation.loss_balancing import Balance, Schedule
from drone_kd_training.distillation.losses import BACKGROUND
from drone_kd_training.distillation.stored_views import StoredViews
from drone_kd_training.distillation.teacher_cost import Cost
from drone_kd_training.distillation.terms import BOX_TERMS, TERMS
from drone_kd_training.models.checkpoints import ClassMatch, UnusableModelError, detect_head
from drone_kd_training.teachers.soft_labels import (
    PSEUDO_LABELS,
    Boxes,
    Thresholds,
    add_pseudo_labels,
    negatives_mask,
)

# Keys of a batch: what the criteria outside of Ultralytics' own hand down to it, and a list to
# which it puts the probabilities (B, N, C) that the labels want, of both branches of a head.
ASSIGNMENT, NEGATIVES_MASK, WANTED = "assignment", "negatives_mask", "wanted"


@dataclass(frozen=True)
class Settings:
    """Of the terms: as the fields of `Config` with these names."""

    temperature: float = 1.0
    beta: float = 0.0
    keep_labels: bool = True


class InFloat32:
    """A detection criterion for a network that computes in half precision, called like it.

    A deep copy (EMA, checkpoints) is the plain detection criterion.
    """

    def __init__(self, detection) -> None:
        self.detection = detection

    def __deepcopy__(self, memo: dict):
        return deepcopy(self.detection, memo)

    def update(self) -> None:
        """End an epoch: YOLO26's criterion moves its own schedule."""
        if hasattr(self.detection, "update"):
            self.detection.update()

    @property
    def innermost(self):
        """Ultralytics' own criterion, also where another teacher's lies between."""
        inner = self.detection
        return inner.innermost if isinstance(inner, InFloat32) else inner

    def __call__(self, preds, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its named parts, computed without autocast."""
        with torch.autocast(batch["img"].device.type, enabled=False):
            return self.loss(preds, batch)

    def loss(self, preds, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its named parts; autocast is off."""
        guides = batch.get(ASSIGNMENT), batch.get(NEGATIVES_MASK)
        guided = guided_criterion(self.detection, *guides)
        found = guided(heads.in_float32(preds), batch)
        if WANTED in batch:
            branches = (getattr(guided, name, guided) for name in ("one2many", "one2one"))
            batch[WANTED][:] = [branch.assigner.targets for branch in branches]
        return found


class DistillationLoss(InFloat32):
    """Ultralytics' detection criterion plus the distillation terms, called like the former.

    Not an nn.Module on purpose: as an attribute of the student it must add neither the teacher's
    parameters nor its own to the student's state.

    Args:
        detection: Ultralytics' criterion, or one that already wraps it.
        teacher: one of `teachers.teachers`.
        student: the model that is trained.
        match: common classes of student and teacher.
        levels: common levels of both heads.
        adapters: of the terms (`make_adapters`).
        terms: names in `terms.TERMS`.
        settings: of the terms, `Settings`.
        balance: weights of the terms.
        schedule: factor of all terms over the steps.
        prefix: of the names of the losses in the place of "kd", where two teachers teach.
        amp: whether the training computes in half precision.
        thresholds: of pseudo-labels, in the student's classes; None: the usual ones.
        views: stored predictions of the teacher; None: it runs at every step.
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
        settings: Settings,
        balance: Balance,
        schedule: Schedule | None = None,
        prefix: str = "kd",
        amp: bool = False,
        thresholds: Thresholds | None = None,
        views: StoredViews | None = None,
    ) -> None:
        device = next(student.parameters()).device
        super().__init__(detection if isinstance(detection, InFloat32) else InFloat32(detection))
        self.teacher = teacher
        if teacher.module is not None:
            teacher.module.to(device)
        head = detect_head(student)
        self.pair = ModelPair(
            student_head=head,
            teacher_head=teacher.head,
            student_classes=torch.tensor([i for i, _ in match.pairs], device=device),
            teacher_classes=torch.tensor([j for _, j in match.pairs], device=device),
            levels=levels,
            temperature=settings.temperature,
            beta=settings.beta,
            adapters=adapters.to(device),
        )
        self.terms = terms
        self.keeps_labels = settings.keep_labels
        self.thresholds = thresholds or Thresholds.same(head.nc)
        self.views = views
        self.balance = balance
        self.schedule = schedule or Schedule()
        self.prefix = prefix
        self.cost = Cost(device)
        # A Detect teacher computes in half precision where the training does, and on a CPU with
        # bfloat16 instructions: it takes half the time and its predictions hardly change.
        self.half = teacher.head is not None and (
            amp or (device.type == "cpu" and computes_in_bfloat16())
        )
        for name in terms:
            TERMS[name].watch(head, levels, self.pair.hidden)

    def loss(self, preds, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the detection loss with the weighted terms appended, and all named parts."""
        factor = self.schedule.advance()
        partial = "areas" in batch and batch["areas"].partial
        student = heads.raw_predictions(heads.in_float32(preds))
        images = batch["teacher_img" if self.pair.levels.scale > 1 else "img"]
        teacher = self._run_teacher(images, batch)
        if partial:
            batch = self._fill_in_labels(student, teacher, images.shape[-1], batch)
        comparison = self._compare(student, teacher, batch)
        single = self._compare_one_to_one(preds, teacher, images.shape[-1], batch)
        wanted: list[Tensor] = batch.get(WANTED, [])
        guided = {**self._assign_labels(comparison, batch), WANTED: wanted}
        loss, items = self.detection(preds, guided)
        if self.keeps_labels or single is not None:
            labelled = self._labelled(student, batch)
        if self.keeps_labels:
            comparison.keep_labels(wanted[0] * labelled)
        if single is not None:
            single.leave_to_labels(wanted[1], labelled)
        losses = self._compute(comparison)
        # Ultralytics sums over images: so do the terms, or the balance would depend on the batch.
        size = len(batch["img"])
        if self.balance.due:
            scaled = {name: term * size for name, term in losses.items()}
            # The features that the head has seen, not their float32 copies.
            self.balance.measure(loss.sum(), scaled, heads.raw_predictions(preds)["feats"])
        self.balance.batches += 1
        added = loss.new_zeros(())
        for name, term in losses.items():
            weight = factor * self.balance.weight(name)
            added = added + weight * term * size
            items = {**items, name: term.detach(), _scale_name(name): loss.new_tensor(weight)}
        if single is not None:
            # Its gradient ends at the head, where nothing can be measured: the same weights.
            for name, term in self._compute(single, BOX_TERMS).items():
                added = added + factor * self.balance.weight(name) * term * size
                items = {**items, name.replace("kd_", "kd_single_", 1): term.detach()}
        return torch.cat([loss.flatten(), added.view(1)]), items

    def _run_teacher(self, images: Tensor, batch: dict) -> dict | Boxes:
        if self.views is not None and self.views.knows(batch["view"]):
            return self.views.of(batch["view"], images.device)
        half = torch.autocast(images.device.type, enabled=self.half)
        with self.cost, torch.no_grad(), half:
            prediction = self.teacher(images.float(), batch)
        if self.views is not None and not isinstance(prediction, Boxes):
            self.views.add(batch["view"], prediction)
            return self.views.of(batch["view"], images.device)  # the same at each visit
        return prediction if isinstance(prediction, Boxes) else heads.in_float32(prediction)

    def _boxes(self, teacher: dict | Boxes, size: float) -> Boxes:
        """Return the prediction as boxes, scores in the teacher's classes; ``size``: its input."""
        if isinstance(teacher, Boxes):
            return teacher
        assert self.pair.teacher_head is not None  # raw predictions come from one
        return heads.confident_boxes(teacher, self.pair.teacher_head, size)

    def _fill_in_labels(
        self, student: dict, teacher: dict | Boxes, size: float, batch: dict
    ) -> dict:
        """Add pseudo-labels of unlabelled classes, and the mask of what remains unknown."""
        pair = self.pair
        if (boxes := batch.get(PSEUDO_LABELS)) is None:
            found = self._boxes(teacher, size)
            scores = found.scores.new_zeros(len(found.image), pair.student_head.nc)
            scores[:, pair.student_classes] = found.scores[:, pair.teacher_classes]
            boxes = Boxes(found.image, found.cxcywh, scores).without_duplicates(BACKGROUND)
        batch = add_pseudo_labels(batch, boxes, self.thresholds.high)
        centers = heads.anchor_centers(student["feats"], pair.student_head.stride)
        centers = centers / heads.input_size(student, pair.student_head)
        mask = negatives_mask(batch, boxes, centers, self.thresholds)
        return {NEGATIVES_MASK: mask, **batch}

    def _compare(self, student: dict, teacher: dict | Boxes, batch: dict) -> Comparison:
        if not isinstance(teacher, Boxes) and self.pair.levels.pairs:
            return LevelComparison(self.pair, student, teacher)
        size = heads.input_size(student, self.pair.student_head) * self.pair.levels.scale
        return BoxComparison(self.pair, student, self._boxes(teacher, size), batch)

    def _compare_one_to_one(
        self, preds, teacher: dict | Boxes, size: float, batch: dict
    ) -> BoxComparison | None:
        """Compare the branch that needs no NMS (YOLO26), None without one.

        The teacher's boxes after NMS are assigned to one anchor each: its predictions at every
        anchor would teach duplicates.
        """
        preds = preds[1] if isinstance(preds, tuple) else preds
        if "one2one" not in preds:
            return None
        student = heads.in_float32(preds["one2one"])
        return BoxComparison(self.pair, student, self._boxes(teacher, size), batch, True)

    def _labelled(self, student: dict, batch: dict) -> Tensor:
        """Return where classes are labelled: (B, N, C) of 1 and 0 over the student's anchors."""
        head = self.pair.student_head
        centers = heads.anchor_centers(student["feats"], head.stride)
        images = len(batch["img"])
        if "areas" not in batch:
            return centers.new_ones(images, len(centers), head.nc)
        areas = batch["areas"]
        return areas.at(areas.labelled, centers / heads.input_size(student, head), images)

    def _assign_labels(self, comparison: Comparison, batch: dict) -> dict:
        if isinstance(comparison, LevelComparison):
            for name in self.terms:
                if (assignment := TERMS[name].assignment(comparison)) is not None:
                    return {ASSIGNMENT: assignment, **batch}
        return batch

    def _compute(
        self, comparison: Comparison, only: Collection[str] = tuple(TERMS)
    ) -> dict[str, Tensor]:
        """Return the losses of all terms, or those in ``only``, in the order of ``TERMS``."""
        found: dict[str, Tensor] = {}
        for name, term in TERMS.items():
            if name in self.terms and name in only:
                found.update(term.compute(comparison))
        found = {name.replace("kd", self.prefix, 1): loss for name, loss in found.items()}
        for name, loss in found.items():
            if not torch.isfinite(loss):
                raise UnusableModelError(
                    f"{name} is {loss.item()}: the teacher's output is not finite on this batch"
                )
        return found


def _scale_name(name: str) -> str:
    return name.replace("_loss", "_scale")


def computes_in_bfloat16() -> bool:
    """Return whether this CPU has bfloat16 instructions."""
    known = torch.cpu.get_capabilities()
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def make_adapters(
    terms: tuple[str, ...],
    levels: LevelMatch,
    student_head: Detect,
    teacher_head: Detect | None,
    seed: int,
) -> nn.ModuleDict:
    """Return the layers that bring the student's features to the teacher's width.

    They are trained with the student and thrown away. Their random initial weights do not touch
    the random numbers of the run: the student sees the same batches with and without them.
    """
    found = nn.ModuleDict()
    if teacher_head is None:
        return found
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, term in TERMS.items():
            if name in terms:
                found.update(term.make_adapters(student_head, teacher_head, levels))
    return found
