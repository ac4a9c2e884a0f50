"""Engine builds with a real builder: TensorRT-RTX, which builds ahead of time without a GPU.

TensorRT-RTX has the Python API of TensorRT, but the engine cannot run here and Jetsons are not
supported: a pass is strong evidence for TensorRT, not proof.
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

# Unlike TensorRT it has no timing cache, and warns.
pytestmark = pytest.mark.filterwarnings("ignore:.*Timing cache operations:DeprecationWarning")


@pytest.fixture
def build(monkeypatch):
    """Import drone_kd.backends.tensorrt.build on top of TensorRT-RTX."""
    create = rtx.Builder.create_builder_config

    def create_for_an_absent_gpu(self):
        config = create(self)
        config.num_compute_capabilities = 1
        config.set_compute_capability(rtx.ComputeCapability.SM86, 0)
        return config

    monkeypatch.setattr(rtx.Builder, "create_builder_config", create_for_an_absent_gpu)
    monkeypatch.setitem(sys.modules, "tensorrt", rtx)
    forget_modules()
    from drone_kd.backends.tensorrt import build

    yield build
    forget_modules()


def test_build_of_a_small_model(build, tmp_path):
    model = write_bright_cell_model(tmp_path / "model.onnx").read_bytes()
    plan, _ = build._build_plan(model, "fp32", b"", print)
    assert len(plan) > 1000


def test_progress_monitor_is_called_with_phase_and_step(build, tmp_path, monkeypatch):
    model = write_bright_cell_model(tmp_path / "model.onnx").read_bytes()
    positions: list[str] = []

    step_complete = build._Monitor.step_complete

    def record(monitor, phase_name, step):
        proceed = step_complete(monitor, phase_name, step)
        positions.append(monitor.position)
        return proceed

    monkeypatch.setattr(build._Monitor, "step_complete", record)
    build._build_plan(model, "fp32", b"", print)
    assert positions
    assert all(" of " in position for position in positions)


def test_parser_error_has_the_parsers_reason(build, tmp_path):
    # The first node on the uint8 input is not a Cast.
    model = write_fixed_model(tmp_path / "model.onnx", np.zeros((1, 4, 6))).read_bytes()
    with pytest.raises(ModelError, match=r"cannot read the model: .*UINT8") as error:
        build._build_plan(model, "fp32", b"", print)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_model_are_rejected(build):
    with pytest.raises(ModelError, match="cannot read the model"):
        build._build_plan(b"nothing", "fp32", b"", print)


def test_build_of_the_packaged_model(build):
    plan, _ = build._build_plan(default_model_path().read_bytes(), "fp32", b"", print)
    assert len(plan) > 1_000_000
