# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ctrl-C during a training run."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from ultralytics.engine.trainer import BaseTrainer
from ultralytics.utils import LOGGER


@contextlib.contextmanager
def interrupt_between_batches(trainer: BaseTrainer) -> Iterator[None]:
    """Stop at the next batch on Ctrl-C, and at once on a second one.

    An exception raised by a signal handler is lost inside Python's own clean-up, such as the
    forking of a loader's process.
    """
    if threading.current_thread() is not threading.main_thread():  # only that one gets signals
        yield
        return
    interrupted = threading.Event()

    def on_signal(*_) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()
        LOGGER.info("Stopping after this batch")

    def check(_) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt

    for event in ("on_train_batch_start", "on_val_batch_start"):
        trainer.add_callback(event, check)
    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    check(trainer)
