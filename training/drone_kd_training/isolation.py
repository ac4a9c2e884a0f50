# SPDX-License-Identifier: AGPL-3.0-or-later
"""Limits for Ultralytics: a checkpoint runs no code, and nothing leaves the machine unasked."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

# Set to 1 to load checkpoints that hold other objects than Ultralytics' models; they may run code.
TRUST = "DRONE_KD_TRUST_CHECKPOINTS"
# Set to 1 to let Ultralytics download a released checkpoint that is named but missing.
DOWNLOADS = "DRONE_KD_DOWNLOADS"
# Ultralytics' settings that report a run to others, and are on where a user chose nothing.
_REPORTS = ("sync", "clearml", "comet", "dvc", "mlflow", "raytune")


def load_safely() -> None:
    """Make Ultralytics load known model classes only, here and in subprocesses; see `TRUST`.

    Called at import. Ultralytics reads the environment when it is imported, which may be earlier.
    """
    safe = not _is_set(TRUST)
    os.environ["ULTRALYTICS_SAFE_LOAD"] = str(int(safe))
    for name in ("ultralytics.utils", "ultralytics.nn.tasks"):
        if module := sys.modules.get(name):
            module.__dict__["SAFE_LOAD"] = safe


def stay_offline() -> None:
    """Switch off Ultralytics' online checks and telemetry, here and in subprocesses.

    Called at import, before Ultralytics is imported; `cut_off_ultralytics` does the rest.
    """
    os.environ["YOLO_OFFLINE"] = "1"


def may_download() -> bool:
    """Whether the user allowed downloads; see `DOWNLOADS`."""
    return _is_set(DOWNLOADS)


def cut_off_ultralytics() -> None:
    """Switch off Ultralytics' reports, and its downloads unless allowed; the files stay as set.

    Called when the modules are imported that load models and train.
    """
    from ultralytics.utils import SETTINGS, downloads, events  # seconds to import

    for key in _REPORTS:
        dict.__setitem__(SETTINGS, key, False)  # its own method would write the user's file
    dict.__setitem__(SETTINGS, "api_key", "")
    events.events.enabled = False
    if may_download():
        return
    original = downloads.safe_download

    def local_only(url: str | Path, *args: Any, **kwargs: Any) -> Path:
        """Unpack a local file as `safe_download` does; ConnectionError for any other."""
        if "://" in str(url) or not Path(url).is_file():
            raise ConnectionError(f"{url} is not downloaded: {DOWNLOADS}=1 allows it")
        return original(url, *args, **kwargs)

    if original.__name__ != local_only.__name__:
        _replace(original, local_only)
        _replace(downloads.get_github_assets, lambda *_, **__: ("", []))
        _replace(downloads.is_url, lambda url, check=False: not check and "://" in str(url))


def _replace(function: Any, replacement: Any) -> None:
    """Replace a function in every module of Ultralytics that has imported it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("ultralytics."):
            for key in [k for k, value in vars(module).items() if value is function]:
                module.__dict__[key] = replacement


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "") not in ("", "0")
