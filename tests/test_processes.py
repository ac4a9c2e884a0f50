"""Processes end with the block that started them."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from drone_kd import processes

_READY = "print('ready', flush=True); "


def _child(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_ends_with_an_interrupt() -> None:
    with processes.running(
        _child(f"import time; {_READY} time.sleep(60)"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout.readline() == b"ready\n"
    assert process.returncode == -signal.SIGINT


def test_one_that_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_STOP_S", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    with processes.running(
        _child(f"{deaf}{_READY} time.sleep(60)"), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"ready\n"
    assert process.returncode == -signal.SIGKILL


def test_ends_when_the_block_fails() -> None:
    with (
        pytest.raises(RuntimeError, match="ours"),
        processes.running(_child("import time; time.sleep(60)")) as process,
    ):
        raise RuntimeError("ours")
    assert process.returncode == -signal.SIGINT
