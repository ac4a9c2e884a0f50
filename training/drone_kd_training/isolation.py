# SPDX-License-Identifier: AGPL-3.0-or-later
"""Limits for Ultralytics: a checkpoint runs no code, and nothing leaves the machine unasked."""

from __future__ import annotations

import argparse
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


def add_trust_option(parser: argparse._ActionsContainer) -> None:
    """Add ``--trust`` to a command that opens checkpoints; the command line obeys it."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help=f"load a .pt even if it may run code on this machine, as {TRUST}=1",
    )


def trust_checkpoints() -> None:
    """Load every checkpoint whatever it holds, here and in subprocesses: ``--trust``."""
    os.environ[TRUST] = "1"
    load_safely()


def load_safely() -> None:
    """Make Ultralytics load known model classes only, here and in subprocesses; see `TRUST`.

    Called at import. Ultralytics reads the environment when it is imported, which may be earlier.
    """
    safe = not is_trusted()
    os.environ["ULTRALYTICS_SAFE_LOAD"] = str(int(safe))
    for name in ("ultralytics.utils", "ultralytics.nn.tasks"):
        if module := sys.modules.get(name):
            module.__dict__["SAFE_LOAD"] = safe


def stay_offline() -> None:
    """Switch off Ultralytics' online checks and telemetry, here and in subprocesses.

    Called at import, before Ultralytics is imported; `cut_off_ultralytics` does the rest.
    """
    os.environ["YOLO_OFFLINE"] = "1"


def is_trusted() -> bool:
    """Whether the user trusts every checkpoint; see `TRUST`."""
    return _is_set(TRUST)


def may_download() -> bool:
    """Whether the user allowed downloads; see `DOWNLOADS`."""
    return _is_set(DOWNLOADS)


def cut_off_ultralytics() -> None:
    """Switch off Ultralytics' reports, and its downloads unless allowed; the files stay as set.

    Called when the modules are imported that load models and train.
    """
    import torch.hub  # seconds to import, as Ultralytics
    from ultralytics.utils import SETTINGS, downloads, events

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

    def no_download(url: str, *_: Any, **__: Any) -> None:
        """Refuse the weights that torchvision's models name."""
        raise ConnectionError(f"{url} is not downloaded: {DOWNLOADS}=1 allows it")

    if original.__name__ != local_only.__name__:
        replace_in_ultralytics(original, local_only)
        replace_in_ultralytics(downloads.get_github_assets, lambda *_, **__: ("", []))
        is_url = downloads.is_url
        replace_in_ultralytics(is_url, lambda url, check=False: not check and "://" in str(url))
        torch.hub.__dict__["download_url_to_file"] = no_download


def replace_in_ultralytics(function: Any, replacement: Any) -> None:
    """Replace a function in every module of Ultralytics that has imported it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("ultralytics."):
            for key in [k for k, value in vars(module).items() if value is function]:
                module.__dict__[key] = replacement


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() in ("1", "true", "yes", "on")
