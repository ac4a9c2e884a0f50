"""Fixtures of the training tests."""

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the training part is not installed: make setup")
pytest.importorskip("ultralytics", reason="the training part is not installed: make setup")

import torch

from drone_kd_training.export.export import export
from square_detector import save_square_detector
from tiny_training import draw_set, save_checkpoint

# On images of 64 px threads cost more than they bring.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    return draw_set(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("teacher") / "teacher.pt")


@pytest.fixture(scope="session")
def square_detector(tmp_path_factory) -> Path:
    """A checkpoint that detects the objects of ``tiny_data``, and is smaller than the teacher."""
    return save_square_detector(tmp_path_factory.mktemp("detector") / "detector.pt")


@pytest.fixture(scope="session")
def int8_model(tiny_data, square_detector, tmp_path_factory) -> Path:
    """The square detector as an INT8 file."""
    output = tmp_path_factory.mktemp("int8") / "model.onnx"
    return export(square_detector, output, precision="int8", data=str(tiny_data))[0]
