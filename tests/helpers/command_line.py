"""Calls of drone-kd within the test's process."""

from __future__ import annotations

from drone_kd import cli


def run(*arguments: object) -> int:
    """Run drone-kd and return its exit code."""
    return cli.main([str(argument) for argument in arguments])


def only_message(capfd) -> str:
    """Return the only line that drone-kd has printed to standard error; libraries may print."""
    lines = capfd.readouterr().err.splitlines()
    own = [line for line in lines if line.startswith("drone-kd: ")]
    assert len(own) == 1 and not any(line.startswith("Traceback") for line in lines), lines
    return own[0]
