"""Commands in process groups of their own, of which no process outlives the test."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

# A guard against hanging for ever, not an expectation: a loaded machine is many times slower.
PATIENCE_S = 600.0


@contextlib.contextmanager
def started(command: list[str], **options) -> Iterator[subprocess.Popen[str]]:
    """Start a command, and kill its process group at the end.

    SIGTERM comes first: torchrun's workers have groups of their own, and it ends them.
    """
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=30)
        with contextlib.suppress(ProcessLookupError):  # every process has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_command(command: list[str], cwd: Path | None = None) -> str:
    """Run a command and return its stdout; fail the test when the command fails."""
    with started(command, stdout=subprocess.PIPE, cwd=cwd) as process:
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors[-3000:]
    return output
