"""Which runtime a node flies with, on a simulated TensorRT and GPU (simulated_tensorrt.py)."""

import pytest

from tiny_model import tiny_spec, write_bright_cell_model

pytest.importorskip("rclpy", reason="ROS 2 is not here")
pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not here")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter

from drone_kd.ros import detector_node as node_module

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


def test_a_missing_engine_is_built_while_configuring(simulated_tensorrt, ground, model):
    site = ground(model=model)
    assert site.add_detector().trigger_configure() == SUCCESS
    assert "building the engine of model.onnx" in site.wait_for_log("building")
    assert "TensorRT 10.3 fp32" in site.wait_for_log("2 classes")
    assert simulated_tensorrt.builds == 1


def test_without_an_engine_it_does_not_fly(simulated_tensorrt, ground, model):
    simulated_tensorrt.build_error = "Error Code 10"
    site = ground(model=model)
    assert site.add_detector().trigger_configure() == FAILURE
    line = site.wait_for_log("cannot configure")
    assert "Error Code 10" in line and "allow_fallback" in line


def test_onnxruntime_serves_where_that_is_allowed_and_says_so(simulated_tensorrt, ground, model):
    simulated_tensorrt.build_error = "Error Code 10"
    site = ground(model=model, allow_fallback=True)
    assert site.add_detector().trigger_configure() == SUCCESS
    assert "[WARN]" in site.wait_for_log("ONNX Runtime serves instead of TensorRT")


def test_another_runtime_can_be_chosen(simulated_tensorrt, ground, model):
    site = ground(model=model, runtime="onnxruntime")
    assert site.add_detector().trigger_configure() == SUCCESS
    assert "onnxruntime" in site.wait_for_log("2 classes")
    assert simulated_tensorrt.builds == 0


def test_a_model_loaded_in_flight_builds_no_engine(simulated_tensorrt, ground, model, tmp_path):
    """That would take the GPU for minutes from the one that flies."""
    site = ground(model=model, autostart=True)
    node = site.add_detector()
    other = write_bright_cell_model(tmp_path / "other.onnx", tiny_spec(classes=("bus", "dog")))
    node.set_parameters([Parameter("model", value=str(other))])
    assert "model.onnx flies on" in site.wait_for_log("cannot load")
    assert simulated_tensorrt.builds == 1


def test_a_fallback_is_a_warning_for_the_pilot(simulated_tensorrt, ground, model, monkeypatch):
    monkeypatch.setattr(node_module, "REPORT_SECONDS", 0.1)
    simulated_tensorrt.build_error = "Error Code 10"
    site = ground(model=model, allow_fallback=True, autostart=True)
    site.add_detector()
    status = site.collect(DiagnosticArray, "/diagnostics").get(timeout=5).status[0]
    assert status.level == DiagnosticStatus.WARN
    assert "ONNX Runtime serves instead of TensorRT" in status.message
