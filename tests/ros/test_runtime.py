"""Choice of the runtime, with a simulated TensorRT and GPU (simulated_tensorrt.py)."""

import signal

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.lifecycle import TransitionCallbackReturn

from drone_kd.backends.tensorrt import cuda
from drone_kd.core.postprocess import InferenceError
from drone_kd.ros import detector_node
from drone_kd.ros.detector_node import DetectorNode
from drone_kd.ros.run import RESTART_CODE
from ground_station import WAIT_SECONDS
from tiny_model import tiny_spec, with_golden, write_bright_cell_model

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


def test_missing_engine_is_built_while_configuring(simulated_tensorrt, ground, model):
    site = ground(model=model)
    assert site.add_detector().trigger_configure() == SUCCESS
    assert "building the engine of model.onnx" in site.wait_for_log("building")
    assert "TensorRT 10.3 fp32" in site.wait_for_log("2 classes")
    assert simulated_tensorrt.builds == 1


def test_missing_engine_is_not_built_without_permission(simulated_tensorrt, ground, model):
    site = ground(model=model, may_build=False)
    assert site.add_detector().trigger_configure() == FAILURE
    assert "may_build: false; run: drone-kd build" in site.wait_for_log("cannot configure")
    assert simulated_tensorrt.builds == 0


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


def test_golden_images_decide_on_a_model_in_flight(simulated_tensorrt, ground, model, tmp_path):
    other = with_golden(write_bright_cell_model(tmp_path / "other.onnx"), rows_of=model)
    wrong = tmp_path / "wrong.onnx"
    write_bright_cell_model(wrong, cell=16)
    with_golden(wrong, rows_of=other)
    site = ground(model=model, autostart=True, runtime="onnxruntime")
    site.add_detector()
    site.set_parameter("model", str(wrong))
    line = site.wait_for_log("cannot load")
    assert "onnxruntime" in line and "does not reproduce the golden images" in line
    assert "keeping model.onnx" in line
    site.set_parameter("model", str(other))
    site.wait_for_log("Swapped to model other.onnx")


def test_gpu_that_is_lost_while_loading_does_not_end_a_node_that_flies_on_the_cpu(
    ground, simulated_tensorrt, model
):
    simulated_tensorrt.gpu.errors["cudaStreamSynchronize"] = 700
    site = ground(model=model, autostart=True, allow_fallback=True)
    node = site.add_detector()
    assert cuda.lasting_error() and node._slot.model.backend.fallback
    node._match()  # does not raise


@pytest.fixture
def signal_handlers():
    """Restore what `run_node` sets for its process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signal_handlers")
@pytest.mark.parametrize("hidden_by_tensorrt", [False, True])
def test_gpu_that_is_lost_to_the_process_ends_it(
    simulated_tensorrt, model, ros_domain_id, monkeypatch, capfd, hidden_by_tensorrt
):
    nodes = []

    def make(finished):
        node = DetectorNode(finished)
        nodes.append(node)

        def lose_gpu():
            if node._slot is None or timer.is_canceled():
                return  # the model is not loaded
            timer.cancel()
            simulated_tensorrt.gpu.fault = 719
            if hidden_by_tensorrt:
                simulated_tensorrt.execute_error = "CUDA failure"
            with pytest.raises(InferenceError):
                node._slot.model.backend.infer(np.zeros((1, 64, 64, 3), np.uint8))

        timer = node.create_timer(0.01, lose_gpu)
        return node

    monkeypatch.setattr(detector_node, "DetectorNode", make)
    make.ends_with = DetectorNode.ends_with
    arguments = ["--ros-args", "-p", f"model:={model}", "-p", "autostart:=true"]
    assert detector_node.main(arguments) == RESTART_CODE == 75
    line = next(line for line in capfd.readouterr().err.splitlines() if "error: " in line)
    assert "the GPU is lost to this process" in line and "(CUDA error 719); restart it" in line


def test_other_cuda_errors_end_nothing(simulated_tensorrt, ground, model):
    site = ground(model=model, autostart=True)
    site.add_detector()
    site.wait_for_detector()
    simulated_tensorrt.gpu.errors["cudaStreamSynchronize"] = 2
    site.send_and_wait(np.zeros((64, 64, 3), np.uint8))
    site.wait_for_log("Inference failed")
    simulated_tensorrt.gpu.errors.clear()
    assert cuda.lasting_error() == ""
    site.send(np.zeros((64, 64, 3), np.uint8), seconds=2)
    assert site.receive().header.stamp.sec == 2
