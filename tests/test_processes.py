"""Child processes end with the block that started them."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest

from drone_kd import processes

# Says when it is ready: a signal while Python starts has other effects.
WAITS = "import time; print('ready', flush=True); time.sleep(600)"
IGNORES_SIGTERM = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAITS}"


def wait_until_ready(process: subprocess.Popen[Any]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"


def python(code: str) -> Any:
    return processes.running(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def test_process_is_terminated_at_the_end_of_the_block() -> None:
    with python(WAITS) as process:
        wait_until_ready(process)
    assert process.returncode == -signal.SIGTERM


def test_process_that_ignores_the_signal_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_STOP_S", 0.2)
    with python(IGNORES_SIGTERM) as process:
        wait_until_ready(process)
    assert process.returncode == -signal.SIGKILL


def test_process_is_terminated_when_the_block_fails() -> None:
    def fail() -> None:
        with python(WAITS) as process:
            started.append(process)
            wait_until_ready(process)
            raise RuntimeError("ours")

    started: list[subprocess.Popen[Any]] = []
    with pytest.raises(RuntimeError, match="ours"):
        fail()
    assert started[0].returncode == -signal.SIGTERM


def test_process_that_has_ended_is_left_alone() -> None:
    with python("raise SystemExit(3)") as process:
        process.wait(60)
    assert process.returncode == 3
