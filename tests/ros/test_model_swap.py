"""A swap is final once the new model has published its first result."""

import contextlib
import gc
import signal
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import SetParameters
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool, Trigger

from drone_kd.ros import camera, detector_node, labels, survival, work
from drone_kd.ros.drop_reasons import FAILED
from drone_kd.ros.memory import return_memory
from drone_kd.ros.run import StopFlag
from ground_station import WAIT_SECONDS
from hostile_models import (
    write_endless_model,
    write_model_endless_for_white,
    write_model_not_finite_for_white,
    write_model_slow_unless_white,
    write_with_metadata,
)
from tiny_model import tiny_spec, write_bright_cell_model

_LARGE_BYTES = 100_000_000
WHITE = np.full((64, 64, 3), 255, np.uint8)
ONE = np.zeros((64, 64, 3), np.uint8)
ONE[8:16, 8:16] = 255


def swap(site, path):
    site.set_parameter("model", str(path))
    site.wait_for_log(f"Swapped to model {path.name}")


def class_of_one(site):
    site.send(ONE)
    return site.receive().detections[0].results[0].hypothesis.class_id


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (write_model_not_finite_for_white, "not finite"),
        pytest.param(write_model_endless_for_white, "terminate flag", marks=pytest.mark.slow),
    ],
)
def test_first_image_of_a_model_that_fails_with_it_is_detected_by_the_old_one(
    flying, model, tmp_path, write, says, monkeypatch
):
    monkeypatch.setattr(work, "LIMIT_SECONDS", 1.0)
    stats = flying.collect(DiagnosticArray, "/detector/stats")
    swap(flying, write(tmp_path / "other.onnx"))
    flying.send(WHITE, seconds=7)
    found = flying.receive()
    assert (found.header.stamp.sec, len(found.detections)) == (7, 64)
    line = flying.wait_for_log("model other.onnx failed with its first image")
    assert says in line and "keeping model.onnx" in line
    assert flying.dropped(FAILED) == 0
    assert flying.detector.get_parameter("model").value == str(model)
    message = flying.receive_until(
        stats, lambda m: m.status[0].level == DiagnosticStatus.WARN, "the failure is reported"
    )
    values = {pair.key: pair.value for pair in message.status[0].values}
    assert values["failures"] == "1" and says in values["last failure"]
    assert values["model"] == "model.onnx"
    response = flying.call(Trigger, "/detector/rollback", Trigger.Request())
    assert not response.success, "the failed model is not the previous one"
    assert class_of_one(flying) == "car"


@pytest.mark.slow
def test_model_is_swapped_out_also_if_its_first_image_became_too_old_meanwhile(
    flying, tmp_path, monkeypatch
):
    monkeypatch.setattr(work, "LIMIT_SECONDS", 1.0)
    flying.set_parameter("max_age", 0.5)
    swap(flying, write_model_endless_for_white(tmp_path / "other.onnx"))
    flying.send(WHITE, seconds=0)
    line = flying.wait_for_log("model other.onnx failed with its first image")
    assert "keeping model.onnx" in line
    flying.set_parameter("max_age", 0.0)
    assert class_of_one(flying) == "car"


def test_failure_is_no_longer_reported_after_the_window(flying, tmp_path, monkeypatch):
    stats = flying.collect(DiagnosticArray, "/detector/stats")
    (tmp_path / "other.onnx").write_text("no model")
    flying.set_parameter("model", str(tmp_path / "other.onnx"))
    flying.wait_for_log("cannot load")
    flying.receive_until(
        stats, lambda m: m.status[0].level == DiagnosticStatus.WARN, "the failure is reported"
    )
    monkeypatch.setattr(survival, "WINDOW_SECONDS", 0.0)
    message = flying.receive_until(
        stats, lambda m: m.status[0].level == DiagnosticStatus.OK, "it is over"
    )
    assert {pair.key: pair.value for pair in message.status[0].values}["failures"] == "1"


def test_model_whose_detections_cannot_be_published_is_swapped_out(flying, tmp_path, monkeypatch):
    works = camera.to_detection_array

    def fail_for_buses(detections, classes, header):
        if "bus" in classes:
            raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")
        return works(detections, classes, header)

    monkeypatch.setattr(camera, "to_detection_array", fail_for_buses)
    labels = flying.labels()
    assert labels.get(timeout=WAIT_SECONDS).class_map[0].class_name == "car"
    swap(flying, write_bright_cell_model(tmp_path / "bus.onnx", tiny_spec(classes=("bus", "dog"))))
    assert class_of_one(flying) == "car"
    flying.wait_for_log("model bus.onnx failed with its first image")
    names = [labels.get(timeout=WAIT_SECONDS).class_map[0].class_name for _ in range(2)]
    assert names == ["bus", "car"]


def test_model_whose_labels_cannot_be_published_is_refused(flying, model, tmp_path, monkeypatch):
    works = labels.to_label_info

    def fail_for_buses(classes, *arguments):
        if "bus" in classes:
            raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")
        return works(classes, *arguments)

    monkeypatch.setattr(labels, "to_label_info", fail_for_buses)
    bus = write_bright_cell_model(tmp_path / "bus.onnx", tiny_spec(classes=("bus", "dog")))
    flying.set_parameter("model", str(bus))
    assert "keeping model.onnx" in flying.wait_for_log("cannot load")
    assert class_of_one(flying) == "car"
    assert flying.detector.get_parameter("model").value == str(model)


def test_image_that_fails_with_both_models_does_not_end_the_swap(flying, tmp_path, monkeypatch):
    swap(flying, write_bright_cell_model(tmp_path / "bus.onnx", tiny_spec(classes=("bus", "dog"))))
    with monkeypatch.context() as patch:
        patch.setattr(camera, "to_detection_array", lambda *_: 1 / 0)
        flying.send(ONE)
        flying.wait_until(lambda: flying.dropped(FAILED) == 1, "it is counted")
    assert class_of_one(flying) == "bus"
    assert "failed with its first image" not in flying.log()


@pytest.fixture
def no_cycle_collector():
    """Free only what nothing refers to any more."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_model_before_the_previous_one_is_freed_after_the_first_result(
    flying, tmp_path, no_cycle_collector
):
    first = weakref.ref(flying.backend)
    swap(flying, write_bright_cell_model(tmp_path / "second.onnx"))
    assert class_of_one(flying) == "car"
    swap(flying, write_bright_cell_model(tmp_path / "third.onnx"))
    assert first() is not None, "needed for a roll-back if the third model fails"
    assert class_of_one(flying) == "car"
    flying.wait_until(lambda: first() is None, "the first model is freed")


def test_failed_model_is_freed(flying, tmp_path, no_cycle_collector):
    swap(flying, write_model_not_finite_for_white(tmp_path / "other.onnx"))
    other = weakref.ref(flying.backend)
    flying.send(WHITE)
    assert len(flying.receive().detections) == 64
    flying.wait_until(lambda: other() is None, "it is freed")


def enable(site, on):
    assert site.call(SetBool, "/detector/enable", SetBool.Request(data=on)).success


def test_working_model_outlives_several_failing_ones(flying, model, tmp_path, no_cycle_collector):
    enable(flying, False)
    swap(flying, write_model_not_finite_for_white(tmp_path / "second.onnx"))
    second = weakref.ref(flying.backend)
    swap(flying, write_model_not_finite_for_white(tmp_path / "third.onnx"))
    flying.wait_until(lambda: second() is None, "the second model is freed: it was never used")
    enable(flying, True)
    flying.send(WHITE)
    assert len(flying.receive().detections) == 64
    assert "keeping model.onnx" in flying.wait_for_log("third.onnx failed with its first image")
    assert flying.detector.get_parameter("model").value == str(model)


def test_settings_must_suit_the_model_that_is_returned_to(flying, tmp_path):
    swap(flying, write_bright_cell_model(tmp_path / "bus.onnx", tiny_spec(classes=("bus", "dog"))))
    result = flying.try_parameter("classes", ["bus"])
    assert not result.successful
    assert "model.onnx is used again if the new model fails with its first image" in result.reason
    assert class_of_one(flying) == "bus"
    flying.wait_until(lambda: flying.detector._slot.former() is None, "the model is settled")
    flying.set_parameter("classes", ["bus"])
    assert class_of_one(flying) == "bus"


def test_rollback_returns_to_the_last_model_that_worked(flying, tmp_path):
    for name in ("second", "third"):
        swap(flying, write_model_not_finite_for_white(tmp_path / f"{name}.onnx"))
    for name in ("model", "third", "model"):
        response = flying.call(Trigger, "/detector/rollback", Trigger.Request())
        assert response.success and f"{name}.onnx" in response.message


@pytest.mark.parametrize("when", ["before", "while"])
def test_model_swapped_in_around_an_inactive_phase_is_swapped_out_if_it_fails(
    flying, tmp_path, when
):
    node, path = flying.detector, write_model_not_finite_for_white(tmp_path / "other.onnx")
    if when == "before":
        swap(flying, path)
    assert node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    if when == "while":
        swap(flying, path)
    assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    flying.wait_for_detector()
    flying.send(WHITE)
    assert len(flying.receive().detections) == 64
    flying.wait_for_log("model other.onnx failed with its first image")


@pytest.fixture
def hangs(flying, tmp_path, monkeypatch):
    """Hold the inferences of a model, which cannot be cancelled; it replaces another one."""
    monkeypatch.setattr(work, "LIMIT_SECONDS", 0.2)
    monkeypatch.setattr(work, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(detector_node, "_STOP_SECONDS", 0.1)
    path = write_bright_cell_model(tmp_path / "hangs.onnx", tiny_spec(classes=("bus", "dog")))
    swap(flying, path)
    with flying.held_inference() as held:
        yield held


@pytest.mark.parametrize("settled", [False, True])
def test_model_that_hangs_is_replaced_by_the_last_one_that_worked(
    flying, hangs, model, tmp_path, settled
):
    status = flying.collect(DiagnosticArray, "/diagnostics")
    if settled:
        hangs.release()
        assert class_of_one(flying) == "bus"
    flying.send(ONE)
    assert "keeping model.onnx" in flying.wait_for_log("an inference of hangs.onnx hangs since")
    assert class_of_one(flying) == "car"
    assert flying.dropped(FAILED) == 1
    assert flying.detector.get_parameter("model").value == str(model)
    message = flying.receive_until(
        status, lambda m: m.status[0].level == DiagnosticStatus.ERROR, "it is an error"
    )
    assert "an inference of hangs.onnx hangs" in message.status[0].message
    assert "in use: model.onnx" in message.status[0].message
    flying.set_parameter("model", str(tmp_path / "hangs.onnx"))
    flying.wait_for_log("an inference of this model hangs")
    node = flying.detector
    assert node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    flying.wait_for_detector()
    assert class_of_one(flying) == "car"
    assert not node.stop(), "the process must not wait for the thread"
    hangs.open()
    flying.wait_until(node.stop, "the inference ends")
    assert flying.detections.empty(), "its result is late"


def test_model_that_hangs_at_deactivation_is_replaced_too(flying, hangs, model, monkeypatch):
    monkeypatch.setattr(work, "LIMIT_SECONDS", 2 * WAIT_SECONDS)  # the deactivation comes first
    node = flying.detector
    flying.send(ONE)
    flying.wait_until(lambda: hangs.calls == 1, "the inference runs")
    assert node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    assert "keeping model.onnx" in flying.wait_for_log("an inference of hangs.onnx hangs since")
    assert node.get_parameter("model").value == str(model)
    assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    flying.wait_for_detector()
    assert class_of_one(flying) == "car"
    assert flying.log().count("hangs since") == 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_model_set_in_a_hang_is_returned_to(flying, hangs, tmp_path, monkeypatch, when):
    """It is set before or after the node knows that the inference hangs."""
    if when == "before":
        monkeypatch.setattr(work, "LIMIT_SECONDS", 2 * WAIT_SECONDS)
    hangs.release()
    assert class_of_one(flying) == "bus"
    flying.send(ONE)
    flying.wait_until(lambda: hangs.calls == 2, "the inference runs")
    if when == "after":
        flying.wait_for_log("hangs since")
    van = write_bright_cell_model(tmp_path / "van.onnx", tiny_spec(classes=("van", "dog")))
    swap(flying, van)
    if when == "before":
        monkeypatch.setattr(work, "LIMIT_SECONDS", 0.2)
        assert "keeping van.onnx" in flying.wait_for_log("hangs since")
    assert class_of_one(flying) == "van"
    swap(flying, write_model_not_finite_for_white(tmp_path / "broken.onnx"))
    flying.send(WHITE)
    assert flying.receive().detections[0].results[0].hypothesis.class_id == "van"
    assert "keeping van.onnx" in flying.wait_for_log("model broken.onnx failed")


def test_model_set_in_the_hang_of_the_only_one_is_returned_to(flying, tmp_path, monkeypatch):
    monkeypatch.setattr(work, "LIMIT_SECONDS", 0.2)
    monkeypatch.setattr(work, "GRACE_SECONDS", 0.2)
    with flying.held_inference():
        flying.send(ONE)
        flying.wait_for_log("no other model is loaded")
        van = write_bright_cell_model(tmp_path / "van.onnx", tiny_spec(classes=("van", "dog")))
        swap(flying, van)
        assert class_of_one(flying) == "van"
        swap(flying, write_model_not_finite_for_white(tmp_path / "broken.onnx"))
        flying.send(WHITE)
        assert flying.receive().detections[0].results[0].hypothesis.class_id == "van"
        flying.wait_for_log("model broken.onnx failed")


def test_hanging_inference_without_another_model_is_an_error_until_one_is_set(
    flying, tmp_path, monkeypatch
):
    monkeypatch.setattr(work, "LIMIT_SECONDS", 0.2)
    monkeypatch.setattr(work, "GRACE_SECONDS", 0.2)
    status = flying.collect(DiagnosticArray, "/diagnostics")
    with flying.held_inference():
        flying.send(ONE)
        message = flying.receive_until(
            status, lambda m: m.status[0].level == DiagnosticStatus.ERROR, "it is an error"
        )
        assert "no other model is loaded" in message.status[0].message
        bus = write_bright_cell_model(tmp_path / "bus.onnx", tiny_spec(classes=("bus", "dog")))
        swap(flying, bus)
        assert class_of_one(flying) == "bus"
        assert not flying.call(Trigger, "/detector/rollback", Trigger.Request()).success
    flying.receive_until(
        status, lambda m: m.status[0].level != DiagnosticStatus.ERROR, "it is over"
    )
    assert flying.call(Trigger, "/detector/rollback", Trigger.Request()).success
    assert class_of_one(flying) == "car"


def test_slow_inference_that_ends_is_published(flying, monkeypatch):
    monkeypatch.setattr(work, "LIMIT_SECONDS", 0.1)
    monkeypatch.setattr(work, "GRACE_SECONDS", 0.1)
    with flying.held_inference() as held:
        flying.send(ONE)
        flying.wait_for_log("no other model is loaded")
        held.release()
        assert len(flying.receive().detections) == 1


@pytest.mark.slow
def test_endless_model_set_before_configuration_fails_it(
    ground, model, tmp_path, enough_for_a_trial
):
    """It may have been set by anyone on the network."""
    site = ground(model=model, swap_timeout_s=enough_for_a_trial)
    node = site.add_detector()
    site.set_parameter("model", str(write_endless_model(tmp_path / "endless.onnx")))
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert f"its trial took longer than {enough_for_a_trial:g} s" in site.wait_for_log(
        "cannot configure"
    )
    site.set_parameter("model", str(model))
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_process_that_configures_with_an_endless_model(
    ground, model, tmp_path, start_detector, number
):
    site = ground()
    process = start_detector(model=model, swap_timeout_s=3600.0)
    path = str(write_endless_model(tmp_path / "endless.onnx"))
    request = SetParameters.Request(parameters=[Parameter("model", value=path).to_parameter_msg()])
    (result,) = site.call(SetParameters, "/detector/set_parameters", request).results
    assert result.successful, result.reason
    client = site.node.create_client(ChangeState, "/detector/change_state")
    site.wait_until(client.service_is_ready, "the service is available")
    client.call_async(
        ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
    )
    site.wait_until(lambda: has_child(process.pid), "the trial runs")
    assert "its trial was cancelled" in process.end(number)


def has_child(pid):
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            if children.read_text():
                return True
    return False


def test_first_model_that_is_still_being_loaded_does_not_delay_the_end(ground, model, monkeypatch):
    monkeypatch.setattr(detector_node, "_STOP_SECONDS", 0.1)
    site = ground(model=model)
    stopping, released = StopFlag(), threading.Event()

    def load_model(*arguments):
        """Stand in for a build, or a first run, that takes minutes and cannot be ended."""
        stopping.set()
        assert released.wait(WAIT_SECONDS)
        return real_load(*arguments)

    real_load = detector_node.load_model
    monkeypatch.setattr(detector_node, "load_model", load_model)
    node = site.add_detector(stopping)
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert "still being loaded" in site.wait_for_log("cannot configure")
    assert not node.stop(), "the process must not wait for the thread"
    released.set()
    site.wait_until(node.stop, "the thread ends")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_memory_of_a_large_refused_model_is_returned(ground, model, tmp_path, no_cycle_collector):
    site = ground(model=model, swap_timeout_s=1.0, autostart=True)
    site.add_detector()
    path = write_endless_model(tmp_path / "large.onnx")
    proto = onnx.load(path)
    weights = np.random.default_rng(0).bytes(_LARGE_BYTES)
    proto.graph.initializer.append(
        onnx.helper.make_tensor(
            "unused", onnx.TensorProto.UINT8, [_LARGE_BYTES], weights, raw=True
        )
    )
    proto.graph.node.append(onnx.helper.make_node("ReduceMax", ["unused"], ["top"], keepdims=0))
    onnx.save(proto, str(path))
    del proto, weights
    return_memory()
    before = resident_bytes()
    for count in (1, 2):
        site.set_parameter("model", str(path))
        site.wait_until(lambda: site.detector.failures.report().count == count, "refused")  # noqa: B023
    site.wait_until(lambda: resident_bytes() - before < _LARGE_BYTES / 2, "its memory is returned")


def resident_bytes():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


@pytest.mark.slow
def test_model_slow_for_the_first_image_fails_configuration(ground, tmp_path):
    """That of the start has no trial."""
    path = write_model_slow_unless_white(tmp_path / "model.onnx")
    site = ground(model=path, swap_timeout_s=1.0)
    node = site.add_detector()
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert "terminate flag" in site.wait_for_log("cannot configure")


def test_unusable_model_at_startup_fails_configuration_in_one_line(ground, tmp_path):
    path = write_with_metadata(tmp_path / "model.onnx", classes=["\x1b[2J\n" * 1000])
    site = ground(model=path)
    node = site.add_detector()
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    line = site.wait_for_log("cannot configure")
    assert line.isprintable() and len(line) < 500


def test_failed_transition_ends_unconfigured_and_can_be_repeated(flying, monkeypatch):
    node = flying.detector
    with monkeypatch.context() as patch:
        patch.setattr(node, "reports", lambda: 1 / 0)
        assert node.trigger_deactivate() == TransitionCallbackReturn.ERROR
    assert "Transition deactivate failed: ZeroDivisionError" in flying.wait_for_log("Transition")
    assert node._state_machine.current_state[1] == "unconfigured"
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    flying.wait_for_detector()
    assert len(flying.exchange(ONE).detections) == 1
