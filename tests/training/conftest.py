"""Fixtures of the training tests.

The training part is imported in the fixtures: `tests/conftest.py` leaves this folder out without
it, but pytest still imports this file.
"""

from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Compute on one thread: on images of 64 px more cost more than they bring."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    from tiny_training import draw_set

    return draw_set(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory) -> Path:
    from tiny_training import save_checkpoint

    return save_checkpoint(tmp_path_factory.mktemp("teacher") / "teacher.pt")


@pytest.fixture(scope="session")
def square_detector(tmp_path_factory) -> Path:
    """A checkpoint that detects the objects of ``tiny_data``, and is smaller than the teacher."""
    from square_detector import save_square_detector

    return save_square_detector(tmp_path_factory.mktemp("detector") / "detector.pt")


@pytest.fixture(scope="session")
def int8_model(tiny_data, square_detector, tmp_path_factory) -> Path:
    """The square detector as an INT8 file."""
    from drone_kd_training.export.export import export

    output = tmp_path_factory.mktemp("int8") / "model.onnx"
    return export(square_detector, output, precision="int8", data=str(tiny_data))[0]
