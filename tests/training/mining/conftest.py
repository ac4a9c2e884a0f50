"""Fixtures of the mining tests: a flight and two models.

Imports are deferred: `tests/conftest.py` leaves this folder out without rosbags.
"""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    """A model that detects bright squares."""
    from tiny_model import tiny_spec, write_bright_cell_model

    return write_bright_cell_model(
        tmp_path_factory.mktemp("models") / "teacher.onnx", tiny_spec(classes=("car", "tree"))
    )


@pytest.fixture(scope="session")
def student(tmp_path_factory) -> Path:
    """A model that detects a car in the same place of every frame."""
    import numpy as np

    from mining_flights import NAMES
    from tiny_model import tiny_spec, write_fixed_model

    rows = np.array([[[4, 4, 12, 12, 0.6, 1]]], np.float32)
    path = tmp_path_factory.mktemp("models") / "student.onnx"
    return write_fixed_model(path, rows, tiny_spec(classes=NAMES))


@pytest.fixture(scope="session")
def bag(tmp_path_factory) -> Path:
    from mining_flights import flight

    return flight(tmp_path_factory.mktemp("flights") / "night")
