"""Processes that end with us."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator, Sequence

_STOP_S = 10.0


@contextlib.contextmanager
def running(command: Sequence[object], **options: object) -> Iterator[subprocess.Popen]:
    """Run a command, and end it with SIGINT, or after 10 s by force.

    Args:
        command: program and arguments.
        options: of `subprocess.Popen`.
    """
    # Of its own group: Ctrl-C is for us, who end the processes in their order.
    process = subprocess.Popen([*map(str, command)], start_new_session=True, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
