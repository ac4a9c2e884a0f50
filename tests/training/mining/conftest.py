"""Fixtures of the mining tests: a flight and two models."""

from pathlib import Path

import pytest

from tiny_model import tiny_spec, write_bright_cell_model, write_fixed_model

pytest.importorskip("rosbags", reason="rosbags is not here: pip install drone_kd[simulation]")

import numpy as np

from mining_flights import NAMES, flight


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    """A model that detects bright squares."""
    return write_bright_cell_model(
        tmp_path_factory.mktemp("models") / "teacher.onnx", tiny_spec(classes=("car", "tree"))
    )


@pytest.fixture(scope="session")
def student(tmp_path_factory) -> Path:
    """A model that detects a car in the same place of every frame."""
    rows = np.array([[[4, 4, 12, 12, 0.6, 1]]], np.float32)
    path = tmp_path_factory.mktemp("models") / "student.onnx"
    return write_fixed_model(path, rows, tiny_spec(classes=NAMES))


@pytest.fixture(scope="session")
def bag(tmp_path_factory) -> Path:
    return flight(tmp_path_factory.mktemp("flights") / "night")
