# SPDX-License-Identifier: AGPL-3.0-or-later
"""Log of a training run: a progress line within an epoch, and one line per finished epoch."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from ultralytics.utils import LOGGER, RANK

from drone_kd.progress import Progress, duration
from drone_kd_training.quiet import quiet_progress_bars
from drone_kd_training.tables import format_score


def add_training_log(trainer: Any) -> None:
    """Report the epochs of an Ultralytics trainer in the place of its own output."""
    quiet_progress_bars()
    if RANK not in {-1, 0}:  # of torchrun's processes only the first one reports
        return
    log = _TrainingLog()
    trainer.add_callback("on_train_start", log.start)
    trainer.add_callback("on_train_epoch_start", log.start_epoch)
    trainer.add_callback("on_train_batch_end", log.end_batch)
    trainer.add_callback("on_train_epoch_end", log.close)
    trainer.add_callback("on_fit_epoch_end", log.end_epoch)
    trainer.add_callback("on_train_end", log.end)
    trainer.add_callback("teardown", log.close)  # also after an error


class _TrainingLog:
    """Ultralytics callbacks with the state that they share."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._started = 0.0

    def start(self, trainer: Any) -> None:
        self._started = time.monotonic()
        LOGGER.info(
            "Training: %d epochs of %d batches (%d images of %d px)",
            trainer.epochs - trainer.start_epoch,
            len(trainer.train_loader),
            len(trainer.train_loader.dataset),
            trainer.args.imgsz,
        )

    def start_epoch(self, trainer: Any) -> None:
        self.close(trainer)  # Ultralytics starts an epoch again with a smaller batch
        what = f"Epoch {trainer.epoch + 1}/{trainer.epochs}"
        self._progress = Progress(what, len(trainer.train_loader), "batch", summary=False)
        self._progress.__enter__()

    def end_batch(self, trainer: Any) -> None:
        if self._progress is not None:
            self._progress.update(note=losses(trainer.tloss))

    def close(self, _: Any) -> None:
        if self._progress is not None:
            self._progress.__exit__(None, None, None)
            self._progress = None

    def end_epoch(self, trainer: Any) -> None:
        done, left = trainer.epoch + 1, trainer.epochs - trainer.epoch - 1
        parts = [losses(trainer.tloss)]
        score = trainer.metrics.get("metrics/mAP50-95(B)")
        if trainer.args.val and score is not None:
            parts.append(f"mAP50-95 {format_score(score)}")
        per_epoch = (time.monotonic() - self._started) / (done - trainer.start_epoch)
        parts.append(f"{duration(left * per_epoch)} left" if left else "training done")
        LOGGER.info("Epoch %d/%d: %s", done, trainer.epochs, ", ".join(parts))

    def end(self, trainer: Any) -> None:
        """Report early stopping: Ultralytics' own message is hidden."""
        done, best = trainer.epoch + 1, trainer.stopper.best_epoch
        patience = trainer.stopper.patience
        if done < trainer.epochs and done - best >= patience:
            text = "Stopped early: no improvement in %d epochs; best epoch %d"
            LOGGER.info(text, patience, best)


def losses(means: Mapping[str, float]) -> str:
    """Return the mean detection loss of an epoch so far, and that of the distillation terms.

    Args:
        means: name of a loss -> its mean; names of distillation terms begin with "kd_".
    """
    detection = sum(float(v) for name, v in means.items() if not name.startswith("kd_"))
    # "kd_*_scale" are the weights of the terms, no losses.
    terms = [float(v) for name, v in means.items() if re.fullmatch("kd_.*_loss", name)]
    if not terms:
        return f"loss {detection:.3f}"
    return f"loss {detection:.3f}, distillation {sum(terms):.3f}"
