"""Nodes as processes of their own, whose output is awaited line by line."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time

import pytest

# Only an upper bound: a busy machine may take this long to start Python and ROS.
WAIT_SECONDS = 90.0


class NodeProcess:
    """A Python module that runs as a process until the test ends.

    Args:
        module: run with `python -m`.
        arguments: of its command line.
        environment: additions to this process's environment.
    """

    def __init__(self, module: str, *arguments: str, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment},
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._output = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def has_line(self, text: str, seconds: float = 0.0) -> bool:
        """Return whether a line that was not read before contains `text`; read up to it."""
        deadline = time.monotonic() + seconds
        while (line := self._next_line(deadline)) is not None:
            if text in line:
                return True
        return False

    def wait_for_line(self, text: str) -> str:
        """Wait for an output line that contains `text`; fails the test if none comes."""
        deadline = time.monotonic() + WAIT_SECONDS
        while (line := self._next_line(deadline)) is not None:
            if text in line:
                return line
        pytest.fail(f"expected a line with {text!r}, got:\n{self._output}")

    def _next_line(self, deadline: float) -> str | None:
        try:
            line = self._lines.get(timeout=max(deadline - time.monotonic(), 0))
        except queue.Empty:
            return None
        self._output += line or ""
        return line

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def wait(self) -> tuple[int, str]:
        """Wait for the end; returns exit code and whole output."""
        code = self._process.wait(WAIT_SECONDS)
        deadline = time.monotonic() + WAIT_SECONDS
        while self._next_line(deadline) is not None:
            pass
        return code, self._output

    def stop(self, number: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        """Send a signal and wait for the end; returns exit code and whole output."""
        self.send_signal(number)
        return self.wait()

    def end(self, number: signal.Signals = signal.SIGINT) -> str:
        """Send a signal; return the whole output after checking for a clean end."""
        code, output = self.stop(number)
        assert code == 0, output
        assert "Traceback" not in output
        return output

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()
