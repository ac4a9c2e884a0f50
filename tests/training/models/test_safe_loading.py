"""Plain files of tensors; what a checkpoint may hold is tested in ``test_checkpoints.py``."""

import errno
from pathlib import Path

import pytest
import torch

from drone_kd_training.models.safe_loading import read_plain, write_plain


def test_a_full_disk_is_an_oserror_and_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    write_plain(path, {"weights": torch.ones(3)})

    def full(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_plain(path, {"weights": torch.zeros(3)})
    assert read_plain(path)["weights"].tolist() == [1, 1, 1]
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]
