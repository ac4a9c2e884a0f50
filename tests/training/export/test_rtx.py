"""Every export goes through the builder of TensorRT-RTX."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from drone_kd_training.data.dataset import image_paths, load_data
from drone_kd_training.export.export import write
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.models.torch_backend import describe
from tiny_model import quantize_bias
from tiny_training import SIZE, save_checkpoint

pytest.importorskip(
    "tensorrt_rtx_bindings",
    reason="no TensorRT-RTX (requirements/rtx.txt), whose wheels are for x86-64 Linux",
)
from benchmarks import rtx  # noqa: E402

# Convolutions that stay float: two per level and head, and DFL where there is one.
FLOAT = {"aerial-student.yaml": 5, "yolo11n.yaml": 7, "yolo26n.yaml": 6}


@pytest.fixture(scope="module", params=FLOAT)
def checkpoint(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    return request.param, load_model(str(save_checkpoint(path, architecture=request.param)))[0]


def exported(model, data, path, precision="fp32", **changes):
    """Write without gates: they are not what is asked here."""
    int8 = {"frames": 1, "data": "", "names_sha256": ""}
    spec = describe(
        model, SIZE, source_sha256="0" * 64, tools={}, metrics={}, licence="", precision=precision,
        calibration=int8 if precision == "int8" else {},
    )  # fmt: skip
    frames = image_paths(load_data(data).train)[:1]
    write(model, replace(spec, **changes), frames, path)
    return path


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_export_builds_with_its_types(checkpoint, precision, tiny_data, tmp_path):
    architecture, model = checkpoint
    verdict = rtx.build(exported(model, tiny_data, tmp_path / "model.onnx", precision))
    assert verdict.errors == [] and verdict.plan > 0
    kept = [c for c in verdict.convolutions if c == ("FLOAT", "FLOAT", False)]
    others = {c for c in verdict.convolutions if c not in kept}
    if precision == "fp32":
        assert not others
    else:
        assert others == {("HALF", "HALF", precision == "int8")}
        assert len(kept) == FLOAT[architecture]


def test_several_frames_and_float_input(checkpoint, tiny_data, tmp_path):
    _, model = checkpoint
    floats = {"layout": "NCHW", "dtype": "float32", "colour": "RGB"}
    path = exported(model, tiny_data, tmp_path / "model.onnx", "fp16", batch=3, **floats)
    verdict = rtx.build(path)
    assert verdict.errors == [] and verdict.plan > 0


def test_what_must_be_refused_is_refused(int8_model, tmp_path):
    """The linter's rules are the builder's own."""
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
