"""Fixtures of the export tests."""

from dataclasses import replace

import onnx
import pytest

from drone_kd_training.export.export import _trace
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.models.torch_backend import ExportGraph, TorchBackend
from tiny_training import SIZE


@pytest.fixture
def half(tiny_teacher, tmp_path):
    """An FP16 graph, the float32 one, and their spec."""
    model, _ = load_model(str(tiny_teacher))
    backend = TorchBackend(model, SIZE)
    path = tmp_path / "half.onnx"
    calibration = {"frames": 1, "data": "", "names_sha256": ""}
    spec = replace(backend.spec, precision="int8", calibration=calibration)
    _trace(ExportGraph(model, half=True), spec, path)
    return onnx.load(path), ExportGraph(model), backend.spec
