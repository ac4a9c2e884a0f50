"""Builds of exported files by TensorRT-RTX, which needs no GPU for that."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from drone_kd_training.data.dataset import image_paths, load_data
from drone_kd_training.export.export import write
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.models.torch_backend import TorchBackend
from tiny_model import quantize_bias
from tiny_training import SIZE, save_checkpoint

pytest.importorskip(
    "tensorrt_rtx_bindings",
    reason="no TensorRT-RTX (requirements/rtx.txt), whose wheels are for x86-64 Linux",
)
from benchmarks import rtx

# Number of convolutions that stay float: two per level and head, and DFL.
FLOAT = {"aerial-student.yaml": 5, "yolo11n.yaml": 7, "yolo26n.yaml": 6}


FLOAT_NCHW = {"layout": "NCHW", "dtype": "float32", "colour": "RGB"}


def write_ungated(
    architecture: str, data: Path, path: Path, precision: str, **changes: object
) -> Path:
    checkpoint = save_checkpoint(path.with_suffix(".pt"), architecture=architecture)
    model, _ = load_model(str(checkpoint))
    int8 = {"frames": 1, "data": "", "names_sha256": ""}
    spec = replace(
        TorchBackend(model, SIZE).spec,
        precision=precision,
        calibration=int8 if precision == "int8" else {},
        **changes,
    )
    write(model, spec, image_paths(load_data(data).train)[:1], path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("architecture", FLOAT)
@pytest.mark.parametrize(
    ("precision", "changes"),
    [
        pytest.param("fp32", {}, id="fp32"),
        pytest.param("fp16", {}, id="fp16"),
        pytest.param("int8", {}, id="int8"),
        pytest.param("fp16", {"batch": 3, **FLOAT_NCHW}, id="fp16-batch-float-input"),
    ],
)
def test_export_builds_with_its_types(architecture, precision, changes, tiny_data, tmp_path):
    path = write_ungated(architecture, tiny_data, tmp_path / "model.onnx", precision, **changes)
    verdict = rtx.build(path)
    assert verdict.errors == []
    assert verdict.plan > 0
    kept = [c for c in verdict.convolutions if c == ("FLOAT", "FLOAT", False)]
    others = {c for c in verdict.convolutions if c not in kept}
    if precision == "fp32":
        assert not others
    else:
        assert others == {("HALF", "HALF", precision == "int8")}
        assert len(kept) == FLOAT[architecture]


def test_builder_refuses_what_the_graph_checks_report(int8_model, tmp_path):
    model = onnx.load(int8_model)
    assert rtx.build(int8_model).plan > 0
    zero_point = next(i for i in model.graph.initializer if i.name.endswith("_zero_point"))
    zero_point.CopyFrom(numpy_helper.from_array(np.array(3, np.int8), zero_point.name))
    onnx.save(model, tmp_path / "asymmetric.onnx")
    assert rtx.build(tmp_path / "asymmetric.onnx").plan == 0

    model = onnx.load(int8_model)
    quantize_bias(model)
    onnx.save(model, tmp_path / "bias.onnx")
    assert rtx.build(tmp_path / "bias.onnx").plan == 0
