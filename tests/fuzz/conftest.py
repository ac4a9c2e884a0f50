"""Profiles of hypothesis.

`make test` runs 200 repeatable cases per test, `make test-fuzz` 10,000 with a seed that it prints.
"""

from __future__ import annotations

import os

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
