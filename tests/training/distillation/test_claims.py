"""Locks of runs that several processes share."""

import errno
import sys
from contextlib import nullcontext

import pytest

from commands import started
from drone_kd_training.distillation.claims import claim

HOLD = """
import sys
from pathlib import Path
from drone_kd_training.distillation.claims import claim
with claim(Path(sys.argv[1])) as claimed:
    print(claimed, flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path):
    import subprocess

    lock = tmp_path / "locks" / "run"
    command = [sys.executable, "-c", HOLD, str(lock)]
    with started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "True\n"
        with claim(lock) as claimed:
            assert not claimed
        process.kill()
        process.wait()
        with claim(lock) as claimed:
            assert claimed
    with claim(lock, wait=True) as claimed, claim(lock) as again:
        assert claimed and not again
    with claim(lock) as claimed:
        assert claimed


@pytest.mark.parametrize(("code", "works"), [(errno.ENOLCK, True), (errno.EIO, False)])
def test_a_file_system_without_locks_stops_nothing(code, works, tmp_path, monkeypatch):
    def fail(descriptor, operation):
        raise OSError(code, "no locks")

    monkeypatch.setattr("fcntl.flock", fail)
    with nullcontext() if works else pytest.raises(OSError, match="no locks"):  # noqa: SIM117
        with claim(tmp_path / "run") as claimed:
            assert claimed
