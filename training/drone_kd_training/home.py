# SPDX-License-Identifier: AGPL-3.0-or-later
"""Home folder and user name for users without any, as in a container run as another user id."""

from __future__ import annotations

import atexit
import getpass
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path


def ensure_home() -> None:
    """Give this process and its subprocesses a home until it ends, and a name, if they have none.

    Ultralytics and torch ask for both when they are imported or first used.
    """
    try:
        Path.home()
    except RuntimeError:
        with suppress(OSError):  # no folder at all can be written
            os.environ["HOME"] = tempfile.mkdtemp(prefix="drone_kd-home-")
            atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)
    try:
        getpass.getuser()
    except (ImportError, KeyError, OSError):
        os.environ["USER"] = str(os.getuid())
