"""A node as a process: exceptions of its callbacks."""

import os
import signal
import sys

import pytest
from rclpy.node import Node

from drone_kd.ros.params import SettingsError
from drone_kd.ros.run import run_node


class Failing(Node):
    """Fails in its first two timer callbacks, and finishes in the third."""

    def __init__(self, finished, error):
        super().__init__("failing")
        self.calls, self._finished, self._error = 0, finished, error
        self.create_timer(0.01, self._tick)

    def _tick(self):
        self.calls += 1
        if self.calls > 2:
            self._finished.set()
            return
        raise self._error

    def stop(self):
        return True


@pytest.fixture
def run(ros_domain_id):
    """Run a failing node; return its exit code and its calls. Signal handlers are restored."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

    def start(error, **options):
        nodes = []

        def make(finished):
            nodes.append(Failing(finished, error))
            return nodes[0]

        return run_node("failing", make, [], **options), nodes[0].calls

    yield start
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("error", [OSError("disk"), SettingsError("bad"), KeyError("x")])
def test_node_that_survives_logs_the_exception_and_continues(run, error, capfd):
    assert run(error, survives=True) == (0, 3)
    assert f"Callback failed: {type(error).__name__}: " in capfd.readouterr().err


def test_other_node_ends_with_the_exception(run):
    with pytest.raises(OSError, match="disk"):
        run(OSError("disk"))


def test_interrupt_always_ends_the_node(run):
    with pytest.raises(KeyboardInterrupt):
        run(KeyboardInterrupt(), survives=True)


def test_logging_without_a_folder_names_the_variable(run, monkeypatch, capfd):
    def fail(**_):  # the real one leaves its context behind, which cannot be used again
        raise RuntimeError("failed to initialize logging: Failed to create log directory '/.ros'")

    monkeypatch.setattr("rclpy.init", fail)
    with pytest.raises(IndexError):  # no node is made
        run(OSError("disk"))
    assert "set ROS_LOG_DIR to a folder that can be written" in capfd.readouterr().err


def test_signal_that_interrupts_the_request_to_end_does_not_block(run, monkeypatch):
    """A lock of the flag would be held by this thread, and be waited for by the handler."""
    interrupted = []

    def trace(frame, event, argument):
        if frame.f_code.co_name == "set" and len(interrupted) < 100:
            interrupted.append(event)
            signal.raise_signal(signal.SIGINT)
        return trace

    monkeypatch.setattr(Failing, "_tick", lambda self: self._finished.set())
    sys.settrace(trace)
    try:
        run(OSError("disk"), survives=True)
    finally:
        sys.settrace(None)
    assert "line" in interrupted


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_process_that_still_imports(start, number):
    process = start("detector_that_imports_forever", PYTHONPATH=os.pathsep.join(sys.path))
    process.wait_for_line("importing rclpy")
    code, output = process.stop(number)
    assert code == -number
    assert "Traceback" not in output
