"""Our way of building, with a real builder of NVIDIA's: TensorRT-RTX, which needs no GPU for it.

A relative of TensorRT with the same Python API and a builder that works ahead of time. It cannot
run here what it built, and knows no Jetson: a pass is strong evidence, not proof, for TensorRT.
"""

import sys

import numpy as np
import pytest

from drone_kd.core.model_spec import ModelError
from drone_kd.paths import default_model_path
from simulated_tensorrt import forget_modules
from tiny_model import write_bright_cell_model, write_fixed_model

rtx = pytest.importorskip(
    "tensorrt_rtx_bindings",
    reason="no TensorRT-RTX (requirements/rtx.txt), whose wheels are for x86-64 Linux",
)

# It has no timing cache, and warns of ours; TensorRT has one.
pytestmark = pytest.mark.filterwarnings("ignore:.*Timing cache operations:DeprecationWarning")


@pytest.fixture
def build(monkeypatch):
    """drone_kd.backends.tensorrt.build, on top of TensorRT-RTX."""
    create = rtx.Builder.create_builder_config

    def for_a_gpu_that_is_not_here(self):
        config = create(self)
        config.num_compute_capabilities = 1
        config.set_compute_capability(rtx.ComputeCapability.SM86, 0)
        return config

    monkeypatch.setattr(rtx.Builder, "create_builder_config", for_a_gpu_that_is_not_here)
    monkeypatch.setitem(sys.modules, "tensorrt", rtx)
    forget_modules()
    from drone_kd.backends.tensorrt import build

    yield build
    forget_modules()


def test_a_model_becomes_an_engine(build, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_PROGRESS_SECONDS", 0.001)
    model = write_bright_cell_model(tmp_path / "model.onnx").read_bytes()
    said = []
    plan, _ = build._build_plan(model, "fp32", b"", said.append)
    assert len(plan) > 1000
    assert [line for line in said if " of " in line], "it never said how far it is"


def test_a_refusal_has_the_parsers_own_reason(build, tmp_path):
    # Its first step on the uint8 picture is not a cast.
    model = write_fixed_model(tmp_path / "model.onnx", np.zeros((1, 4, 6))).read_bytes()
    with pytest.raises(ModelError, match="cannot read the model: .*UINT8") as error:
        build._build_plan(model, "fp32", b"", print)
    assert "\n" not in str(error.value)


def test_what_is_no_model(build):
    with pytest.raises(ModelError, match="cannot read the model"):
        build._build_plan(b"nothing", "fp32", b"", print)


def test_the_model_of_the_package(build):
    plan, _ = build._build_plan(default_model_path().read_bytes(), "fp32", b"", print)
    assert len(plan) > 1_000_000
