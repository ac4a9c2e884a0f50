"""Child processes that end with the block that started them."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

_STOP_S = 10.0


@contextlib.contextmanager
def running(command: Sequence[object], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Run a command; at the end of the block, stop it with SIGTERM, or after 10 s with SIGKILL.

    `options` are those of `subprocess.Popen`.
    """
    # In a process group of its own: Ctrl-C reaches this process only, which ends its children in
    # order.
    process = subprocess.Popen([*map(str, command)], start_new_session=True, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()  # SIGINT prints a traceback while Python still imports
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
