# SPDX-License-Identifier: AGPL-3.0-or-later
"""The student alone, trained beside its distilled copy: `distill --baseline`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from ultralytics.utils import LOGGER

from drone_kd.processes import running
from drone_kd.text import one_line
from drone_kd_training.distillation.config import NO_TEACHER, Config, write_config

FOLDER, LOG = "baseline", "baseline.log"


def alone(config: Config) -> Config:
    """Return the settings of the same run without its teacher."""
    return replace(
        config,
        teacher=NO_TEACHER,
        unlabelled=(),
        views=0,
        view_cache="",
        teacher_scale=1,
        teacher_tiles=False,
        baseline=False,
    )


@contextmanager
def baseline_beside(config: Config, output: Path) -> Iterator[Callable[[], Path | None]]:
    """Train the student alone in a process of its own, if the run asks for it.

    On a CPU at once and on half of the cores, while the block trains on the others: two trainings
    of one thread each do nearly twice as much as one of two. On a GPU, or on one core, after it.

    Args:
        output: folder of the run; the baseline's is below it.

    Yields:
        A function that waits for the baseline and returns its folder; None: there is none. It
        raises RuntimeError if that training failed.
    """
    if not config.baseline:
        yield lambda: None
        return
    folder, log = output / FOLDER, output / LOG
    if not (folder / "config.yaml").is_file():
        write_config(alone(config), folder)
    command = [sys.executable, "-P"] if sys.version_info >= (3, 11) else [sys.executable]
    command += ["-m", "drone_kd.cli", "distill", "--resume", "--output", str(folder)]
    cores = sorted(os.sched_getaffinity(0))
    threads = torch.get_num_threads()
    with ExitStack() as stack:

        def start(own: list[int]) -> subprocess.Popen:
            file = stack.enter_context(log.open("a"))
            os.sched_setaffinity(0, own)  # which the child inherits
            options = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
            return stack.enter_context(running(command, **options))

        process = None
        if len(cores) > 1 and not _on_gpu(config):
            LOGGER.info(f"The student alone trains at the same time: {log}")
            stack.callback(torch.set_num_threads, threads)
            stack.callback(os.sched_setaffinity, 0, cores)
            process = start(cores[1::2])
            os.sched_setaffinity(0, cores[::2])
            torch.set_num_threads(min(threads, len(cores[::2])))

        def finish() -> Path:
            if process is None and torch.cuda.is_available():
                torch.cuda.empty_cache()  # for the other process
            training = process or start(cores)
            if training.poll() is None:
                LOGGER.info(f"Waiting for the student alone: {log}")
            if code := training.wait():
                lines = log.read_text(errors="replace").strip().splitlines() or [f"code {code}"]
                raise RuntimeError(f"the student alone failed: {one_line(lines[-1], 200)}; {log}")
            return folder

        yield finish


def _on_gpu(config: Config) -> bool:
    return config.device != "cpu" and torch.cuda.is_available()
