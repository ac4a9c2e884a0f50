"""Flights, and models that look at them, made on the spot."""

from pathlib import Path

import pytest

from tiny_model import tiny_spec, write_bright_cell_model, write_fixed_model

pytest.importorskip("rosbags", reason="rosbags is not here: pip install drone_kd[simulation]")

import numpy as np

from mining_flights import NAMES, flight


@pytest.fixture
def teacher(tmp_path) -> Path:
    """Sees bright squares."""
    return write_bright_cell_model(tmp_path / "teacher.onnx", tiny_spec(classes=("car", "tree")))


@pytest.fixture
def student(tmp_path) -> Path:
    """Sees a car in the same place of every frame, whatever is there."""
    rows = np.array([[[4, 4, 12, 12, 0.6, 1]]], np.float32)
    return write_fixed_model(tmp_path / "student.onnx", rows, tiny_spec(classes=NAMES))


@pytest.fixture
def bag(tmp_path) -> Path:
    return flight(tmp_path / "night")
