"""Transitions: the node responds meanwhile, and exceptions leave nothing behind."""

import os
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn

from drone_kd.ros import camera, debug_image, detector_node, labels, pipeline
from ground_station import WAIT_SECONDS

ONE = np.zeros((64, 64, 3), np.uint8)
ONE[8:16, 8:16] = 255
SUCCESS = TransitionCallbackReturn.SUCCESS
# What a transition calls; each fails once, in the transition that comes to it first.
POINTS = [
    (detector_node, "load_model"),
    (detector_node, "Camera"),
    (camera, "DebugImages"),
    (detector_node, "ModelSlot"),
    (labels, "to_label_info"),
    (detector_node, "Pipeline"),
    (pipeline, "ImageSubscription"),
    (pipeline.ImageSubscription, "destroy"),
    (pipeline.Pipeline, "stop"),
    (pipeline.Inbox, "close"),
    (debug_image.DebugImages, "destroy"),
    (LifecycleNode, "on_configure"),
    (LifecycleNode, "on_activate"),
    (LifecycleNode, "on_deactivate"),
    (LifecycleNode, "on_cleanup"),
    (LifecycleNode, "destroy_lifecycle_publisher"),
]
_GROWTH_MB = 20
# These fail when they have done their work.
UNDO = {"destroy", "stop", "close", "destroy_lifecycle_publisher"}


def state(node):
    return node._state_machine.current_state[1]


def held(node):
    """What the node holds, by kind, as far as it can be counted."""
    return {
        "publishers": sorted(p.topic_name for p in node.publishers),
        "subscriptions": sorted(s.topic_name for s in node.subscriptions),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "files": len(list(Path("/proc/self/fd").iterdir())),
    }


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fly_and_return(node):
    """Try all transitions until the node is unconfigured again; return how many."""
    count = 0
    for trigger in (node.trigger_configure, node.trigger_activate):
        count += 1
        if trigger() != SUCCESS:
            break
    if state(node) == "active":
        node.trigger_deactivate()
        count += 1
    if state(node) == "inactive":
        node.trigger_cleanup()
        count += 1
    return count


@pytest.mark.slow
def test_exceptions_in_transitions_are_reported_and_leave_nothing(ground, model, monkeypatch):
    """Memory is compared after the first round; NODE_ROUNDS=25 are more than 1,000 transitions."""
    site = ground(model=model, confidence=0.9, cameras="[front, down]")
    node = site.add_detector()
    fly_and_return(node)
    before, count, memory = held(node), 0, []
    for _ in range(int(os.environ.get("NODE_ROUNDS", "2"))):
        count += fail_at_each_point(site, node, before, monkeypatch)
        memory.append(round(resident_bytes() / 1e6, 1))
    print(f"{count} transitions, resident memory after each round in MB: {memory}")
    assert memory[-1] - memory[0] < _GROWTH_MB
    assert (node.trigger_configure(), node.trigger_activate()) == (SUCCESS, SUCCESS)


def fail_at_each_point(site, node, before, monkeypatch):
    """Raise once at each point; return the number of transitions."""
    count = 0
    for owner, name in POINTS:
        works, calls = getattr(owner, name), []

        def fails_once(*arguments, name=name, works=works, calls=calls, **options):
            calls.append(arguments)
            if len(calls) == 1:
                if name in UNDO:
                    works(*arguments, **options)
                raise RuntimeError("injected")
            return works(*arguments, **options)

        failures = site.log().count("injected")
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fails_once)
            count += fly_and_return(node)
        assert calls, f"{name} was not called"
        assert site.log().count("injected") > failures, f"{name}: expected a line in the log"
        assert state(node) == "unconfigured", name
        # Threads end, and with them what they hold, shortly after the transition.
        site.wait_until(
            lambda: held(node) == before, f"{name}: it holds what it held before: {before}"
        )
    return count


def test_recorder_finishes_its_bag_while_the_other_threads_end(ground, model):
    """Launch kills the process after 10 s, with the newest bag unfinished."""
    site = ground(model=model, autostart=True)
    node = site.add_detector()
    site.wait_for_detector()
    events = []

    class SlowRecorder:
        def close(self):
            events.append(("close", state_of_threads()))

        def join(self, timeout):
            events.append(("join", state_of_threads()))
            assert timeout <= 8.0
            return True

    def state_of_threads():
        return "detector" in [thread.name for thread in threading.enumerate()]

    node._recorder = SlowRecorder()
    assert node.stop()
    node._recorder = None
    assert events == [("close", True), ("join", False)]


def test_shutdown_frees_the_model(ground, model):
    site = ground(model=model, autostart=True)
    node = site.add_detector()
    site.wait_for_detector()
    assert node.trigger_shutdown() == SUCCESS
    assert state(node) == "finalized"
    assert node._slot is None
    assert "/detector/detections" not in held(node)["publishers"]


def change(site, transition):
    """Request a transition; return the future response."""
    client = site.node.create_client(ChangeState, "/detector/change_state")
    site.wait_until(client.service_is_ready, "the service is available")
    return client.call_async(ChangeState.Request(transition=Transition(id=transition)))


def state_by_service(site):
    return site.call(GetState, "/detector/get_state", GetState.Request()).current_state.label


@pytest.mark.parametrize("autostart", [True, False])
def test_node_responds_and_reports_progress_while_it_loads_its_model(
    ground, model, monkeypatch, autostart
):
    gate, works = threading.Event(), detector_node.load_model

    def load_model(*arguments):
        arguments[4]("building the engine")
        assert gate.wait(WAIT_SECONDS)
        return works(*arguments)

    monkeypatch.setattr(detector_node, "load_model", load_model)
    site = ground(model=model, confidence=0.9, autostart=autostart)
    node = site.add_detector(wait=False)
    reports = site.collect(DiagnosticArray, "/diagnostics")
    configured = None if autostart else change(site, Transition.TRANSITION_CONFIGURE)
    for _ in range(2):  # again and again
        message = site.receive_until(
            reports, lambda m: "building the engine" in m.status[0].message, "progress"
        )
        assert message.status[0].message == "configuring: building the engine"
        assert message.status[0].level == DiagnosticStatus.WARN
        assert state_by_service(site) == "configuring"
    # It waits for its turn, and is made then.
    activated = change(site, Transition.TRANSITION_ACTIVATE)
    assert not activated.done()
    gate.set()
    site.wait_until(activated.done, "the second request gets its response")
    if configured is not None:
        assert configured.result().success and activated.result().success
    assert state_by_service(site) == "active"
    site.wait_for_detector()
    assert len(site.exchange(ONE).detections) == 1
    assert node.failures.report().count == 0


@pytest.mark.slow
def test_load_without_progress_becomes_an_error(ground, model, monkeypatch):
    gate, works = threading.Event(), detector_node.load_model

    def load_model(*arguments):
        assert gate.wait(WAIT_SECONDS)
        return works(*arguments)

    monkeypatch.setattr(detector_node, "load_model", load_model)
    site = ground(model=model, autostart=True, swap_timeout_s=1.0)
    site.add_detector(wait=False)
    reports = site.collect(DiagnosticArray, "/diagnostics")
    message = site.receive_until(
        reports, lambda m: m.status[0].level == DiagnosticStatus.ERROR, "it is an error"
    )
    assert "configuring: loading the model: no progress for" in message.status[0].message
    gate.set()
    site.receive_until(
        reports, lambda m: m.status[0].level != DiagnosticStatus.ERROR, "it is over"
    )


def test_reason_of_a_failed_activation_is_reported_until_the_next_transition(
    ground, model, monkeypatch
):
    site = ground(model=model, autostart=True)
    with monkeypatch.context() as patch:
        patch.setattr(detector_node, "Pipeline", lambda *_, **__: 1 / 0)
        node = site.add_detector()
    reports = site.collect(DiagnosticArray, "/diagnostics")
    message = site.receive_until(reports, lambda m: True, "a report")
    assert state(node) == "inactive"
    assert message.status[0].level == DiagnosticStatus.ERROR
    assert message.status[0].message == "cannot activate: division by zero"
    assert node.trigger_cleanup() == SUCCESS and not node._problem
    assert node.trigger_configure() == SUCCESS
    assert node.trigger_activate() == SUCCESS
    site.receive_until(
        reports, lambda m: m.status[0].level != DiagnosticStatus.ERROR, "it is over"
    )


def test_node_responds_while_a_deactivation_waits_for_an_inference(ground, model, monkeypatch):
    monkeypatch.setattr(detector_node, "_STOP_SECONDS", 2 * WAIT_SECONDS)
    site = ground(model=model, confidence=0.9, autostart=True)
    site.add_detector()
    site.wait_for_detector()
    with site.held_inference() as held:
        site.send(ONE)
        site.wait_until(lambda: held.calls == 1, "the inference runs")
        deactivated = change(site, Transition.TRANSITION_DEACTIVATE)
        site.wait_until(lambda: state_by_service(site) == "deactivating", "it waits")
    site.wait_until(deactivated.done, "it gets its response")
    assert deactivated.result().success and state_by_service(site) == "inactive"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_process_that_loads_without_end(ground, start, number):
    site = ground()
    process = start(
        "detector_that_loads_forever",
        *("--ros-args", "-p", "autostart:=true"),
        PYTHONPATH=os.pathsep.join(sys.path),
    )
    process.wait_for_line("building the engine")
    assert state_by_service(site) == "configuring"
    assert "still being loaded" in process.end(number)
