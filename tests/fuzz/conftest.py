"""Profiles of hypothesis, and a limit on memory.

`make test` runs 200 repeatable cases per test, `make test-fuzz` 10,000 with a seed that it prints.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No outcome depends on the time that a case takes, nor on cases of earlier runs.
settings.register_profile(
    "test",
    max_examples=200,
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile(
    "fuzz",
    settings.get_profile("test"),
    max_examples=int(os.environ.get("FUZZ_CASES", "10000")),
    derandomize=False,
)
settings.load_profile("fuzz" if "FUZZ_CASES" in os.environ else "test")

# Decoded, the largest image that is accepted has 192 MB.
_MAX_MEGABYTES = 450


def _status_megabytes(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1000


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """Fail a test during which this process grew by more than an image."""
    before = _status_megabytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    yield
    assert _status_megabytes("VmHWM") - before < _MAX_MEGABYTES
