"""Peak of this process's memory while a block runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_PROCESS = Path("/proc/self")


def _megabytes(key: str) -> float:
    lines = (_PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1000


@contextlib.contextmanager
def memory(megabytes: float) -> Iterator[None]:
    """Check that this process never grows by more; without a check where the kernel cannot tell.

    `ru_maxrss` would not do: what an earlier test has needed hides what this block needs.
    """
    try:
        before = _megabytes("VmRSS")
        (_PROCESS / "clear_refs").write_text("5")  # the peak starts anew
    except OSError:  # not Linux, or a container that forbids it
        yield
        return
    yield
    grown = _megabytes("VmHWM") - before
    assert grown < megabytes, f"{grown:.0f} MB"
