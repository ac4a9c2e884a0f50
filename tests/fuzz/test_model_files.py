"""Damaged model files: metadata, or ModelError."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import damaged, only

pytest.importorskip("onnx", reason="needs onnx, which makes the model")

from drone_kd.backends.onnx_runtime import read_metadata
from drone_kd.core.model_spec import METADATA_KEY, ModelError
from tiny_model import write_bright_cell_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Bytes of a small model."""
    return write_bright_cell_model(tmp_path_factory.mktemp("model") / "model.onnx").read_bytes()


@given(data=st.data())
def test_model_file_is_read_or_refused(
    data: st.DataObject, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data.draw(damaged([content])))
    with only(ModelError):
        assert METADATA_KEY in read_metadata(path)
