"""Choice of the runtime, with a simulated TensorRT and GPU (simulated_tensorrt.py)."""

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.lifecycle import TransitionCallbackReturn

from ground_station import WAIT_SECONDS
from tiny_model import tiny_spec, write_bright_cell_model

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


def test_missing_engine_is_built_while_configuring(simulated_tensorrt, ground, model):
    site = ground(model=model)
    assert site.add_detector().trigger_configure() == SUCCESS
    assert "building the engine of model.onnx" in site.wait_for_log("building")
    assert "TensorRT 10.3 fp32" in site.wait_for_log("2 classes")
    assert simulated_tensorrt.builds == 1


def test_failed_engine_build_fails_configuration(simulated_tensorrt, ground, model):
    simulated_tensorrt.build_error = "Error Code 10"
    site = ground(model=model)
    assert site.add_detector().trigger_configure() == FAILURE
    line = site.wait_for_log("cannot configure")
    assert "Error Code 10" in line and "allow_fallback" in line


def test_allowed_fallback_to_onnxruntime_is_logged(simulated_tensorrt, ground, model):
    simulated_tensorrt.build_error = "Error Code 10"
    site = ground(model=model, allow_fallback=True)
    assert site.add_detector().trigger_configure() == SUCCESS
    assert "[WARN]" in site.wait_for_log("ONNX Runtime serves instead of TensorRT")


def test_runtime_parameter_selects_onnxruntime(simulated_tensorrt, ground, model):
    site = ground(model=model, runtime="onnxruntime")
    assert site.add_detector().trigger_configure() == SUCCESS
    assert "onnxruntime" in site.wait_for_log("2 classes")
    assert simulated_tensorrt.builds == 0


def test_model_loaded_while_active_builds_no_engine(simulated_tensorrt, ground, model, tmp_path):
    """A build would take the GPU from the current model for minutes."""
    site = ground(model=model, autostart=True)
    site.add_detector()
    other = write_bright_cell_model(tmp_path / "other.onnx", tiny_spec(classes=("bus", "dog")))
    site.set_parameter("model", str(other))
    assert "keeping model.onnx" in site.wait_for_log("cannot load")
    assert simulated_tensorrt.builds == 1


def test_fallback_is_a_warning_in_the_diagnostics(simulated_tensorrt, ground, model):
    simulated_tensorrt.build_error = "Error Code 10"
    site = ground(model=model, allow_fallback=True, autostart=True)
    site.add_detector()
    status = site.collect(DiagnosticArray, "/diagnostics").get(timeout=WAIT_SECONDS).status[0]
    assert status.level == DiagnosticStatus.WARN
    assert "ONNX Runtime serves instead of TensorRT" in status.message
