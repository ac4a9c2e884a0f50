# SPDX-License-Identifier: AGPL-3.0-or-later
"""Shared parts of the recipes: resumable training runs, a private ROS 2 session, exit codes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from drone_kd.dds import carry_large_images, choose_domain, stay_on_this_machine
from drone_kd_training.distillation.config import Config, read_config
from drone_kd_training.distillation.distill import distill
from drone_kd_training.quiet import first_line, log_to_terminal

# Learning rate schedule of a short run; Ultralytics' automatic one is made for hundreds of epochs.
SHORT_RUN = {"optimizer": "AdamW", "lr0": 0.001, "warmup_epochs": 1.0, "mosaic": 0.0,
             "close_mosaic": 0}  # fmt: skip
# Only ends a wait that would last for ever; a loaded machine starts a node in half a minute.
TIMEOUT_S = 300.0
INTERRUPTED = "interrupted; the same command resumes the run"


def train(config: Config, output: Path) -> dict[str, Any]:
    """Train, resume an interrupted run, or read the metrics of a finished one; return them.

    Raises ValueError if the folder holds a run with other settings.
    """
    started = (output / "config.yaml").is_file()
    if started and read_config(output) != config:
        raise ValueError(
            f"{output} holds a run with other settings: choose another output folder, or delete it"
        )
    return distill(config, output, resume=started)


@contextlib.contextmanager
def ros_session() -> Iterator[None]:
    """Initialise rclpy on this machine only, in a ROS domain that subprocesses inherit.

    A ROS_DOMAIN_ID that is set stays; else the domain is random.
    """
    import rclpy  # offline commands run without ROS 2

    stay_on_this_machine()
    choose_domain()
    carry_large_images()
    rclpy.init()
    try:
        yield
    finally:
        rclpy.try_shutdown()


def run_recipe(recipe: Callable[[], object]) -> int:
    """Run a recipe; an error becomes one line unless ``DRONE_KD_TRACEBACK`` is set.

    Returns the exit code: 0 done, 1 the work failed, 2 wrong input, 130 interrupted.
    """
    log_to_terminal()
    try:
        recipe()
    except KeyboardInterrupt:
        print(f"\n{INTERRUPTED}", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("DRONE_KD_TRACEBACK"):
            raise
        print(f"error: {first_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, (ValueError, FileNotFoundError, FileExistsError)) else 1
    return 0
