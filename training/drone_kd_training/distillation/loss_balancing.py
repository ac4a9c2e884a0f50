# SPDX-License-Identifier: AGPL-3.0-or-later
"""Weights of the distillation terms: measured gradients and a schedule over the steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

# Every fifth of the first batches is measured: a measurement costs one backward pass through the
# head per term.
CALIBRATION_BATCHES, CALIBRATION_STEP = 50, 5
# Share of the earlier measurements that stays at each new one.
_KEPT = 0.8


class Balance:
    """Weights of the terms from measured gradients: often at the start, then every few batches.

    The weight of a term is share * sum(|gradient of the detection loss|) / sum(|gradient of the
    term|), both with respect to the features that enter the student's head; earlier measurements
    fade. Distillers with unbalanced terms end below the baseline, and both gradients change while
    the student learns.

    Args:
        share: of the detection loss's gradient that each term gets.
        every: batches between two measurements; 0: those of the start stay.
        state: of an interrupted run (`state`).
    """

    def __init__(self, share: float, every: int = 0, state: dict | None = None) -> None:
        self.share, self.every = share, every
        self.batches: int = (state or {}).get("batches", 0)
        self.sums: dict[str, list[float]] = (state or {}).get("sums", {})

    @property
    def due(self) -> bool:
        """Whether to measure the gradients of this batch."""
        if self.batches < CALIBRATION_BATCHES:
            return self.batches % CALIBRATION_STEP == 0
        return self.every > 0 and self.batches % self.every == 0

    def measure(self, detection: Tensor, terms: dict[str, Tensor], features: list[Tensor]) -> None:
        """Add the gradient norms of one batch: of scalar losses that depend on ``features``.

        These are the tensors that enter the student's head.
        """
        detection_norm = _gradient_norm(detection, features)
        for name, term in terms.items():
            norms = torch.tensor([detection_norm, _gradient_norm(term, features)])
            # All processes of a multi-GPU run use the same weights.
            reference, norm = average_over_processes(norms).tolist()
            if math.isfinite(reference) and math.isfinite(norm):
                sums = self.sums.setdefault(name, [0.0, 0.0])
                kept = _KEPT if self.every else 1.0
                sums[0] = kept * sums[0] + reference
                sums[1] = kept * sums[1] + norm

    def weight(self, name: str) -> float:
        """Return the weight of a term, 0 before its first measurement."""
        detection, term = self.sums.get(name, (0.0, 0.0))
        return self.share * detection / term if term > 0 else 0.0

    def state(self) -> dict:
        """Return the state from which a resumed run continues with the same weights."""
        return {"batches": self.batches, "sums": self.sums}


@dataclass
class Schedule:
    """Factor of all terms: a linear ramp over warm-up, then 1.

    ``fades``: times a cosine from 1 to 0.1 over the run.
    """

    warmup_steps: int = 1
    total_steps: int = 1
    fades: bool = False
    step: int = 0

    def factor(self) -> float:
        """Return the factor at the current step, in [0, 1]."""
        ramp = min(1.0, (self.step + 1) / max(self.warmup_steps, 1))
        if not self.fades:
            return ramp
        progress = min(self.step / max(self.total_steps, 1), 1.0)
        return ramp * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))

    def advance(self) -> float:
        """Return the factor at the current step and go to the next step."""
        factor = self.factor()
        self.step += 1
        return factor


def _gradient_norm(loss: Tensor, inputs: list[Tensor]) -> float:
    gradients = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
    return math.sqrt(sum(float(g.float().square().sum()) for g in gradients if g is not None))


def average_over_processes(values: Tensor) -> Tensor:
    """Return the mean over the processes of a multi-GPU run, or ``values`` in a single process."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    shared = values.to(device)
    dist.all_reduce(shared)
    return (shared / dist.get_world_size()).to(values)
