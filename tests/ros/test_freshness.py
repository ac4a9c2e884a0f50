"""Late and out-of-order frames, clocks that jump, floods, and inferences that hang."""

import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.lifecycle import TransitionCallbackReturn
from rosgraph_msgs.msg import Clock

from drone_kd.ros import detector_node as node_module
from drone_kd.ros import inbox as inbox_module
from drone_kd.ros.drop_reasons import OLD, SUPERSEDED
from ground_station import WAIT_SECONDS, Ground, HeldInference
from tiny_model import write_slow_model

ONE = np.zeros((64, 64, 3), np.uint8)
ONE[8:16, 8:16] = 255
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


def stamps(site, count):
    return [site.receive().header.stamp.sec for _ in range(count)]


def test_frames_older_than_max_age_are_dropped_before_inference(flying):
    flying.set_parameter("max_age", 60.0)
    with flying.held_inference() as held:
        flying.send(ONE, seconds=time.time() - 7200)
        flying.wait_until(lambda: flying.dropped(OLD) == 1, "the old frame is dropped")
        assert held.calls == 0
    flying.send(ONE, seconds=time.time())
    assert len(flying.receive().detections) == 1
    assert flying.detections.empty()


def test_recording_without_simulated_time_and_camera_ahead_of_the_clock_are_named(flying):
    stats = flying.collect(DiagnosticArray, "/detector/stats")
    for hours, says in ((-720, "behind this computer's clock"), (1, "1:00:00 ahead of")):
        flying.send(ONE, seconds=time.time() + hours * 3600)
        flying.receive()
        message = flying.receive_until(
            stats, lambda m, says=says: says in m.status[1].message, says
        )
        assert "use_sim_time:=true" in message.status[1].message
        flying.detector.trigger_deactivate()
        flying.detector.trigger_activate()
        flying.wait_for_detector()


def test_frame_of_a_camera_ahead_of_the_clock_is_as_old_as_it_has_waited(flying):
    flying.set_parameter("max_age", 0.05)
    ahead = time.time() + 3600
    with flying.held_inference() as held:
        flying.send(ONE, seconds=ahead)
        flying.wait_until(lambda: held.calls == 1, "the inference runs")
        flying.send_and_wait(ONE, seconds=ahead + 1)
        waited = threading.Event()
        flying.node.create_timer(0.1, waited.set)
        assert waited.wait(WAIT_SECONDS)
    flying.wait_until(lambda: flying.dropped(OLD) == 1, "the frame that has waited is dropped")


def test_frame_without_a_stamp_has_no_age_but_a_latency(flying):
    flying.set_parameter("max_age", 60.0)
    for _ in range(2):
        flying.send(ONE, seconds=0)
        assert stamps(flying, 1) == [0]
    flying.wait_until(lambda: flying.detector.reports()[""].processed == 2, "both are counted")
    stages = flying.detector.reports()[""].stages
    # From reception; since 1970 it would be more than 10^12 ms.
    assert "transport" not in stages and stages["total"][0] < 1e9


def test_out_of_order_frame_is_dropped(flying):
    flying.send(ONE, 10.5)
    stamps(flying, 1)
    flying.send(ONE, 10.2)
    flying.wait_until(lambda: flying.dropped(OLD) == 1, "the frame is dropped")
    flying.send(ONE, 10.6)
    assert flying.receive().header.stamp.nanosec == 600_000_000
    assert flying.detections.empty()


def test_clock_that_is_set_back_is_followed(flying):
    for seconds in (1000, 10, 11, 0, 500):
        flying.send(ONE, seconds)
        assert stamps(flying, 1) == [seconds]
    assert flying.dropped(OLD) == 0


def test_age_follows_simulated_time_and_reports_continue_while_it_is_paused(ground, model):
    site = ground(
        model=model,
        confidence=0.9,
        autostart=True,
        max_age=5.0,
        **{"detector:use_sim_time": True},
    )
    detector = site.add_detector()
    site.wait_for_detector()
    stats = site.collect(DiagnosticArray, "/detector/stats")
    for _ in range(3):  # without a /clock
        stats.get(timeout=WAIT_SECONDS)
    clock, now = site.node.create_publisher(Clock, "/clock", 1), Clock()
    now.clock.sec = 100

    def follows():
        clock.publish(now)
        return detector.get_clock().now().nanoseconds == 100 * 10**9

    site.wait_until(follows, "the detector follows /clock")
    site.send(ONE, seconds=94)
    site.wait_until(lambda: site.dropped(OLD) == 1, "the frame of 6 s ago is dropped")
    site.send(ONE, seconds=96)
    assert stamps(site, 1) == [96]
    (transport_ms, *_) = detector.reports()[""].stages["transport"]
    assert transport_ms == 4000


def test_results_of_a_flood_are_published_in_order(flying):
    """More frames than the worker can take: it gets the newest, and no result is out of order."""
    node = flying.detector
    with flying.held_inference() as held:
        number = 0
        while flying.dropped(SUPERSEDED) < 20:
            number += 1
            flying.send_and_wait(ONE, seconds=number)
            if number % 7 == 0:
                held.release()
    last = number + 1
    flying.send(ONE, seconds=last)
    got = [0]
    while got[-1] < last:
        got += stamps(flying, 1)
    assert got == sorted(set(got))
    flying.wait_until(
        lambda: (r := node.reports()[""]).processed + r.dropped[SUPERSEDED] == r.received == last,
        "each frame is counted once",
    )
    assert node.reports()[""].processed == len(got) - 1


def test_max_rate_limits_inference(flying, monkeypatch):
    now = 100.0
    monkeypatch.setattr(inbox_module, "perf_counter", lambda: now)
    flying.set_parameter("max_rate", 5.0)
    flying.send_and_wait(ONE, seconds=1)
    assert stamps(flying, 1) == [1]
    for seconds in (2, 3, 4):
        flying.send_and_wait(ONE, seconds)
    assert flying.dropped(SUPERSEDED) == 2, "a frame was taken before its time"
    now = 100.2
    assert stamps(flying, 1) == [4]
    flying.set_parameter("max_rate", 0.0)
    flying.send(ONE, seconds=5)
    assert stamps(flying, 1) == [5]


@pytest.fixture
def hanging(
    flying: Ground, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Ground, HeldInference]]:
    """A detector whose inference hangs until it is released."""
    monkeypatch.setattr(node_module, "_STOP_SECONDS", 0.1)
    with flying.held_inference() as held:
        flying.send(ONE)
        flying.wait_until(lambda: held.calls == 1, "the inference runs")
        yield flying, held


def test_hanging_inference_delays_no_transition(hanging):
    site, held = hanging
    node = site.detector
    assert node.trigger_deactivate() == SUCCESS
    assert "will be dropped" in site.wait_for_log("An inference is still running")
    assert node.trigger_activate() == FAILURE
    site.wait_for_log("cannot activate")
    assert node.trigger_cleanup() == SUCCESS
    held.open()
    site.wait_until(lambda: not node._still_working(), "the inference ends")
    assert node.trigger_configure() == SUCCESS
    assert node.trigger_activate() == SUCCESS
    site.wait_for_detector()
    site.send(ONE, seconds=2)
    assert stamps(site, 1) == [2], "the result from before the deactivation was published"
    assert "Inference failed" not in site.log()


def test_shutdown_during_an_inference(hanging):
    site, _ = hanging
    assert site.detector.trigger_shutdown() == SUCCESS


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_process_during_a_long_inference(ground, tmp_path, start_detector, number):
    site = ground()
    # More than ten minutes on any processor of today: the test never waits for its end.
    model = write_slow_model(tmp_path / "slow.onnx", products=100_000)
    process = start_detector(model=model, autostart=True)
    stats = site.collect(DiagnosticArray, "/detector/stats")
    camera = site.node.create_timer(0.1, lambda: site.send(np.full_like(ONE, 255)))

    def is_busy(message):
        values = {p.key: p.value for s in message.status[1:] for p in s.values}
        return int(values.get("dropped superseded", 0)) >= 2

    site.receive_until(stats, is_busy, "the inference runs while frames come in")
    site.node.destroy_timer(camera)
    assert "An inference is still running" in process.end(number)
