"""Old frames, stamps that jump, floods, and inferences that fail or hang."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tiny_model import write_slow_model

pytest.importorskip("rclpy", reason="ROS 2 is not here")
pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not here")

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter

from drone_kd.ros import detector_node as node_module
from drone_kd.ros.stats import OLD, SUPERSEDED

ONE = np.zeros((64, 64, 3), np.uint8)
ONE[8:16, 8:16] = 255
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


def stamps(site, count):
    return [site.receive().header.stamp.sec for _ in range(count)]


def dropped(site, reason):
    return site.detector.reports()[""].dropped[reason]


def test_frames_older_than_max_age_are_not_looked_at(flying):
    flying.detector.set_parameters([Parameter("max_age", value=5.0)])
    calls, works = [], flying.detector._model.backend.infer
    flying.detector._model.backend.infer = lambda batch: calls.append(1) or works(batch)
    flying.send(ONE, seconds=time.time() - 60)
    flying.wait_until(lambda: dropped(flying, OLD) == 1, "the old frame is dropped")
    assert not calls
    flying.send(ONE, seconds=time.time())
    assert len(flying.receive().detections) == 1
    assert flying.detections.empty()


def test_a_frame_without_a_stamp_has_no_age_but_counts(flying):
    flying.detector.set_parameters([Parameter("max_age", value=5.0)])
    for _ in range(2):
        flying.send(ONE, seconds=0)
        assert stamps(flying, 1) == [0]
    stages = flying.detector.reports()[""].stages
    assert "transport" not in stages and stages["total"][0] < 5000


def test_a_frame_that_was_overtaken_is_dropped(flying):
    flying.send(ONE, 10.5)
    stamps(flying, 1)
    flying.send(ONE, 10.2)
    flying.wait_until(lambda: dropped(flying, OLD) == 1, "the frame is dropped")
    flying.send(ONE, 10.6)
    assert flying.receive().header.stamp.nanosec == 600_000_000
    assert flying.detections.empty()


def test_a_clock_that_is_set_back_is_followed(flying):
    for seconds in (1000, 10, 11, 0, 500):
        flying.send(ONE, seconds)
        assert stamps(flying, 1) == [seconds]
    assert dropped(flying, OLD) == 0


def test_results_of_a_flood_come_in_order(flying):
    """200 Hz for a second, which is more than 64 cells of detections allow."""
    node, works = flying.detector, flying.detector._model.backend.infer
    node._model.backend.infer = lambda batch: time.sleep(0.01) or works(batch)
    pace = threading.Event()
    for number in range(1, 201):
        flying.send(ONE, seconds=number)
        pace.wait(0.005)
    flying.wait_until(
        lambda: (r := node.reports()[""]).processed + r.dropped[SUPERSEDED] == r.received,
        "all frames are worked on",
    )
    report = node.reports()[""]
    flying.wait_until(lambda: flying.detections.qsize() >= report.processed, "results are here")
    got = stamps(flying, report.processed)
    assert got == sorted(set(got))
    assert got[-1] == 200
    assert report.dropped[SUPERSEDED] > 0


def test_max_rate(flying):
    flying.detector.set_parameters([Parameter("max_rate", value=5.0)])
    pace = threading.Event()
    for number in range(1, 51):
        flying.send(ONE, seconds=number)
        pace.wait(0.02)
    assert 4 <= flying.detector.reports()[""].processed <= 9


@pytest.fixture
def hanging(flying, monkeypatch):
    """A detector whose inference hangs until the event is set."""
    monkeypatch.setattr(node_module, "_STOP_SECONDS", 0.1)
    gate, works = threading.Event(), flying.detector._model.backend.infer
    flying.detector._model.backend.infer = lambda batch: gate.wait(20) and works(batch)
    flying.send(ONE)
    flying.wait_until(
        lambda: flying.detector.reports()[""].received == 1 and not flying.detector._inbox._frames,
        "the inference runs",
    )
    yield flying, gate
    gate.set()


def test_a_hanging_inference_holds_up_no_transition(hanging):
    site, gate = hanging
    node = site.detector
    assert node.trigger_deactivate() == SUCCESS
    assert "will be dropped" in site.wait_for_log("an inference is still running")
    assert node.trigger_activate() == FAILURE
    site.wait_for_log("cannot activate")
    assert node.trigger_cleanup() == SUCCESS
    worker = node._hanging
    gate.set()
    site.wait_until(lambda: worker.stop(0), "the inference ends")
    assert node.trigger_configure() == SUCCESS
    assert node.trigger_activate() == SUCCESS
    site.wait_for_detector()
    site.send(ONE, seconds=2)
    assert stamps(site, 1) == [2], "the result from before the deactivation was published"
    assert "inference failed" not in site.log()


def test_shutdown_during_an_inference(hanging):
    site, _ = hanging
    assert site.detector.trigger_shutdown() == SUCCESS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_long_inference(ground, tmp_path, number):
    site = ground()
    model = write_slow_model(tmp_path / "slow.onnx", products=100)
    process = subprocess.Popen(
        [sys.executable, "-m", "drone_kd.ros.detector_node", "--ros-args", "-p", f"model:={model}"]
        + ["-p", "autostart:=true"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=dict(os.environ),
    )
    try:
        stats = site.collect(DiagnosticArray, "/detector/stats")
        camera = site.node.create_timer(0.1, lambda: site.send(np.full_like(ONE, 255)))

        def drops():
            status = stats.get(timeout=15).status
            values = {p.key: p.value for s in status[1:] for p in s.values}
            return int(values.get("dropped superseded", 0))

        while drops() < 2:  # it is busy
            pass
        site.node.destroy_timer(camera)
        start = time.monotonic()
        process.send_signal(number)
        output, _ = process.communicate(timeout=30)
        assert time.monotonic() - start < 2
        assert process.returncode == 0, output
        assert "an inference is still running" in output
        assert "Traceback" not in output
    finally:
        process.kill()
