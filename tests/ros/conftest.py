"""Fixtures of the node's tests; `tests/conftest.py` leaves them out without ROS 2."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from node_process import NodeProcess


@pytest.fixture(autouse=True)
def frequent_and_repeatable_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Report every 0.1 s, and keep the temperature of this machine out of the levels."""
    from drone_kd.ros import detector_node

    monkeypatch.setattr(detector_node, "REPORT_SECONDS", 0.1)
    monkeypatch.setattr(detector_node, "MATCH_SECONDS", 0.1)
    monkeypatch.setattr(detector_node, "temperatures_c", lambda: {"cpu-thermal": 50.0})


@pytest.fixture
def start_detector(start: Callable[..., NodeProcess]) -> Callable[..., NodeProcess]:
    """Start a detector process with parameters: start_detector(model=..., autostart=True)."""

    def run(*arguments: str, **parameters: object) -> NodeProcess:
        for name, value in parameters.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            arguments += "-p", f"{name}:={text}"
        return start("drone_kd.ros.detector_node", "--ros-args", *arguments)

    return run
