"""Weight updates, resumed runs, checkpoints and the log of `DistillTrainer`."""

from pathlib import Path

import pytest
import torch

from drone_kd_training.distillation.config import Config
from drone_kd_training.distillation.distill import prepare_data, train, validate
from drone_kd_training.distillation.trainer import STATE, DistillTrainer
from tiny_training import SIZE

pytestmark = pytest.mark.slow  # trainings

BATCH = 6
WEIGHT_DECAY = 0.0005
SHORT = {
    "warmup_epochs": 0.0,
    "mosaic": 0.0,
    "close_mosaic": 0,
    "optimizer": "SGD",
    "lr0": 0.01,
    "nbs": BATCH,
    "weight_decay": WEIGHT_DECAY,
}
TRAINER = "drone_kd_training.distillation.distill.DistillTrainer"


class Stop(Exception):  # noqa: N818 - an interruption at a known place, not an error
    pass


def config(data: Path, teacher: Path, epochs: int, **overrides: object) -> Config:
    return Config(
        data=str(data),
        teacher=str(teacher),
        student="aerial-student.yaml",
        epochs=epochs,
        imgsz=SIZE,
        batch=BATCH,
        terms=("class", "feature"),
        val=False,
        overrides={**SHORT, **overrides},
    )


def train_with(
    trainer: type[DistillTrainer], run: Config, output: Path, resume: bool = False
) -> None:
    """Train without evaluating."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TRAINER, trainer)
        train(*prepare_data(validate(run, output, resume)))


def interrupt_after(
    epochs: int, run: Config, output: Path, trainer: type[DistillTrainer] = DistillTrainer
) -> None:
    """Train, and stop once the state after so many epochs is saved."""

    class Interrupted(trainer):  # type: ignore[misc,valid-type]
        def _save_state(self) -> None:
            super()._save_state()
            if self.epoch + 1 == epochs:
                raise Stop

    with pytest.raises(Stop):
        train_with(Interrupted, run, output)


def test_out_of_memory_after_a_resume_halves_the_batch_and_keeps_the_step_size(
    tiny_data, tiny_teacher, tmp_path
):
    """Ultralytics' formulas: a step per ``nbs`` images, a decay in proportion to them."""
    nbs = 16
    run = config(tiny_data, tiny_teacher, epochs=3, nbs=nbs)
    interrupt_after(2, run, tmp_path)
    seen = []

    class OutOfMemoryOnce(DistillTrainer):
        batches = 0

        def preprocess_batch(self, batch: dict) -> dict:
            self.batches += 1
            if self.batches == 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Simulated")
            return super().preprocess_batch(batch)

        def _report_cost(self) -> None:
            groups = {group["param_group"]: group for group in self.optimizer.param_groups}
            seen.append((self.batch_size, self.accumulate, groups["weight"]["weight_decay"]))

    train_with(OutOfMemoryOnce, run, tmp_path, resume=True)
    half = BATCH // 2
    accumulate = round(nbs / half)
    assert seen == [(half, accumulate, pytest.approx(WEIGHT_DECAY * half * accumulate / nbs))]
    assert accumulate != round(nbs / BATCH)  # otherwise the test could not tell
