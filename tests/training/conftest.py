"""Fixtures of the training tests."""

from pathlib import Path

import pytest
import torch
from tiny_training import draw_set, save_checkpoint

# On pictures of 64 px threads cost more than they bring.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    return draw_set(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("teacher") / "teacher.pt")
