"""Fixtures of the distillation tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on the threads that the tests have: on images of 64 px more cost more time."""
    monkeypatch.setattr("drone_kd_training.distillation.trainer._cores", torch.get_num_threads)
