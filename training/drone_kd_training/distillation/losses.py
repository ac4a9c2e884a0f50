# SPDX-License-Identifier: AGPL-3.0-or-later
"""Distillation losses: each a function of tensors that returns one scalar.

Shapes: B images, N anchors (all levels concatenated), C common classes of teacher and student, R
bins of the distance distribution (DFL). The teacher's tensors carry no gradient. Every loss is
zero where the student equals the teacher. Losses over anchors are divided by the teacher's summed
confidence, so that they do not grow with empty background.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

# Lowest confidence that counts: thousands of background anchors at 0.01 each would together weigh
# as much as the objects.
BACKGROUND = 0.05


def teacher_confidence(teacher_logits: Tensor) -> Tensor:
    """Return the teacher's best class probability per anchor, 0 where below ``BACKGROUND``.

    (B, N, C) logits -> (B, N) in [0, 1].
    """
    best = teacher_logits.sigmoid().amax(dim=-1)
    return best * (best >= BACKGROUND)


def class_response_sigmoid(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    beta: float = 0.0,
) -> Tensor:
    """Return the binary distillation loss per class, for class logits (B, N, C).

    The divergence of Bernoulli(sigmoid(z_s / T)) from Bernoulli(sigmoid(z_t / T)), times T^2
    (Hinton et al. 2015, arXiv:1503.02531, so that the gradient does not shrink with T), divided by
    the teacher's summed confidence. ``beta``: the exponent of the weight |p_t - p_s| at T = 1,
    0 for none (1: BCKD, Yang et al. ICCV 2023, arXiv:2308.14286; 2: the quality focal loss, Li et
    al. NeurIPS 2020, arXiv:2006.04388). ``mask`` (B, N, C) is 1 where the loss counts, otherwise
    0; None: everywhere.
    """
    target = (teacher_logits / temperature).sigmoid()
    logits = student_logits / temperature
    # The loss of the target with itself is its entropy.
    target_logits = teacher_logits / temperature
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    loss = loss - F.binary_cross_entropy_with_logits(target_logits, target, reduction="none")
    if beta:
        gap = teacher_logits.sigmoid() - student_logits.detach().sigmoid()
        loss = loss * gap.abs() ** beta
    if mask is not None:
        loss = loss * mask
    confidence = teacher_confidence(teacher_logits).sum().clamp(min=1.0)
    return loss.sum() * temperature**2 / confidence


def class_response_softmax(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0
) -> Tensor:
    """Return the KL of softmax(z / T) over the classes times T^2, for logits (B, N, C).

    The classical form (Hinton et al. 2015, arXiv:1503.02531). Anchors are weighted by the
    teacher's confidence: a softmax has no "no object" class, so the distribution over background
    means nothing.
    """
    teacher_log = F.log_softmax(teacher_logits / temperature, dim=-1)
    student_log = F.log_softmax(student_logits / temperature, dim=-1)
    divergence = (teacher_log.exp() * (teacher_log - student_log)).sum(dim=-1)
    confidence = teacher_confidence(teacher_logits)
    return (divergence * confidence).sum() * temperature**2 / confidence.sum().clamp(min=1.0)


def dfl_divergence(student_bins: Tensor, teacher_bins: Tensor, confidence: Tensor) -> Tensor:
    """Return the KL of the distance distributions of the four box sides, logits (B, N, 4, R).

    Localization distillation (LD, Zheng et al. CVPR 2022, arXiv:2102.12252), weighted by the
    teacher's ``confidence`` (B, N).
    """
    teacher_log = F.log_softmax(teacher_bins, dim=-1)
    student_log = F.log_softmax(student_bins, dim=-1)
    divergence = (teacher_log.exp() * (teacher_log - student_log)).sum(dim=-1).mean(dim=-1)
    return (divergence * confidence).sum() / confidence.sum().clamp(min=1.0)


def decoded_box(
    student_xyxy: Tensor, teacher_xyxy: Tensor, confidence: Tensor, size: float
) -> Tensor:
    """Return the GIoU loss + L1 / size of decoded boxes (B, N, 4) in pixels.

    For heads whose distributions cannot be compared (YOLO26 has none). CrossKD (Wang et al. CVPR
    2024, arXiv:2306.11369) distils decoded boxes with GIoU; the L1 term is DETR's
    (arXiv:2005.12872). The teacher's ``confidence`` (B, N) weights it; ``size`` is the width of
    the square input in pixels.
    """
    giou = generalized_box_iou_loss(student_xyxy, teacher_xyxy, reduction="none")
    distance = (student_xyxy - teacher_xyxy).abs().mean(dim=-1) / size
    return ((giou + distance) * confidence).sum() / confidence.sum().clamp(min=1.0)


def feature_correlation(student: Tensor, teacher: Tensor, confidence: Tensor) -> Tensor:
    """Return the distance of two feature maps (B, F, H, W) where the teacher sees objects.

    PKD (Cao et al. NeurIPS 2022, arXiv:2207.02039): half the mean squared distance of the maps
    after each channel is normalized to mean 0 and variance 1, so that scale and offset of the
    teacher's features do not matter. The teacher's ``confidence`` (B, H, W) weights it, after
    prediction-guided distillation (PGD, Yang et al. ECCV 2022, arXiv:2203.05469): most of an
    aerial image is background.
    """
    student, teacher = (
        F.batch_norm(x.float(), None, None, training=True) for x in (student, teacher)
    )
    distance = F.mse_loss(student, teacher, reduction="none").mean(dim=1) / 2
    return (distance * confidence).sum() / confidence.sum().clamp(min=1.0)
