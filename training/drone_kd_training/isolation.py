# SPDX-License-Identifier: AGPL-3.0-or-later
"""Limits for Ultralytics: a checkpoint or a model yaml runs no code."""

from __future__ import annotations

import os
import sys

# Set to 1 to load checkpoints that hold other objects than Ultralytics' models; they may run code.
TRUST = "DRONE_KD_TRUST_CHECKPOINTS"


def load_safely() -> None:
    """Make Ultralytics load known model classes only, here and in subprocesses; see `TRUST`.

    Called at import. Ultralytics reads the environment when it is imported, which may be earlier.
    """
    safe = os.environ.get(TRUST, "") in ("", "0")
    os.environ["ULTRALYTICS_SAFE_LOAD"] = str(int(safe))
    for name in ("ultralytics.utils", "ultralytics.nn.tasks"):
        if module := sys.modules.get(name):
            module.__dict__["SAFE_LOAD"] = safe
