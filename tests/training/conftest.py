"""Fixtures of the training tests."""

from pathlib import Path

import pytest
import torch

from drone_kd_training.export.export import export
from tiny_training import draw_set, save_checkpoint

# On pictures of 64 px threads cost more than they bring.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    return draw_set(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("teacher") / "teacher.pt")


@pytest.fixture(scope="session")
def int8_model(tiny_data, tiny_teacher, tmp_path_factory) -> Path:
    """The tiny teacher as an INT8 file, whatever its gates say."""
    output = tmp_path_factory.mktemp("int8") / "model.onnx"
    return export(tiny_teacher, output, precision="int8", data=str(tiny_data), force=True)[0]
