"""Fixtures of the node's tests; `tests/conftest.py` leaves them out without ROS 2."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from time import monotonic
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
        return start("drone_kd.ros.detector", "--ros-args", *arguments)

    return run


@pytest.fixture(scope="session")
def enough_for_a_trial(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Seconds, in whole numbers, in which the trial of a usable model ends on this machine."""
    from drone_kd.backends.model_file import read_model_file
    from drone_kd.paths import parameter_defaults
    from drone_kd.ros.model_trial import Trial
    from drone_kd.ros.params import Settings
    from tiny_model import write_bright_cell_model

    path: Path = write_bright_cell_model(tmp_path_factory.mktemp("trial") / "model.onnx")
    started = monotonic()
    Trial()(read_model_file(path), Settings.from_parameters(parameter_defaults("detector.yaml")))
    return float(max(4, math.ceil(4 * (monotonic() - started))))
