"""Fixtures of the distillation tests."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def one_core() -> Iterator[None]:
    """Train on the threads that the tests have: on images of 64 px more cost more time."""
    import torch  # deferred: the training part is optional

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("drone_kd_training.distillation.trainer._cores", torch.get_num_threads)
        yield
