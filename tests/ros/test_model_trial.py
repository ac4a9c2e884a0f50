"""Trial of a model in a process of its own."""

import os
import select
import signal
import subprocess
import sys
import threading

import pytest

from drone_kd.backends.model_file import read_model_file
from drone_kd.core.model_spec import ModelError
from drone_kd.paths import parameter_defaults
from drone_kd.ros.model_trial import Trial
from drone_kd.ros.params import Settings
from hostile_models import write_endless_model, write_greedy_model, write_with_metadata
from tiny_model import write_bright_cell_model

DEFAULTS = parameter_defaults("detector.yaml")


def settings(**changes):
    return Settings.from_parameters({**DEFAULTS, **changes})


def test_settings_survive_the_way_to_the_child():
    given = settings(classes=["car"], class_confidence=["car=0.4"], cameras=["a", "b"])
    assert Settings.from_json(given.to_json()) == given


def test_usable_model_passes(tmp_path):
    Trial()(read_model_file(write_bright_cell_model(tmp_path / "model.onnx")), settings())


def test_model_that_lacks_a_class_is_refused(tmp_path):
    file = read_model_file(write_bright_cell_model(tmp_path / "model.onnx"))
    with pytest.raises(ModelError, match="knows no class 'lorry'"):
        Trial()(file, settings(classes=["lorry"]))


def test_file_that_is_replaced_meanwhile_makes_no_difference(tmp_path):
    file = read_model_file(write_bright_cell_model(tmp_path / "model.onnx"))
    file.path.write_text("something else")
    Trial()(file, settings())


def test_reason_is_one_printable_line(tmp_path):
    file = read_model_file(write_with_metadata(tmp_path / "m.onnx", classes=["\x1b[2J\n" * 1000]))
    with pytest.raises(ModelError) as caught:
        Trial()(file, settings())
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 400


def test_model_that_needs_too_much_memory_is_refused(tmp_path):
    with pytest.raises(ModelError, match="half of the free memory"):
        Trial()(read_model_file(write_greedy_model(tmp_path / "model.onnx")), settings())


def test_endless_model_is_ended_after_the_time(tmp_path):
    file = read_model_file(write_endless_model(tmp_path / "model.onnx"))
    with pytest.raises(ModelError, match=r"took longer than 1 s \(swap_timeout_s\)"):
        Trial()(file, settings(swap_timeout_s=1.0))


class Running:
    """A trial of an endless model in a thread."""

    def __init__(self, path):
        self.trial, self.error = Trial(), None
        self._file = read_model_file(write_endless_model(path))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        while self.trial._process is None:
            self._thread.join(0.01)

    def _run(self):
        try:
            self.trial(self._file, settings())
        except ModelError as error:
            self.error = str(error)

    def outcome(self):
        self._thread.join()
        return self.error


def test_cancelled_trial_ends(tmp_path):
    running = Running(tmp_path / "model.onnx")
    process = running.trial._process
    running.trial.cancel()
    assert running.outcome() == "its trial was cancelled"
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(ModelError, match="cancelled"):
        running.trial(running._file, settings())


def test_trial_ends_when_the_process_has_to(tmp_path):
    file = read_model_file(write_endless_model(tmp_path / "model.onnx"))
    with pytest.raises(ModelError, match="its trial was cancelled"):
        Trial(lambda: True)(file, settings())


def test_crash_of_the_child_is_a_reason(tmp_path):
    running = Running(tmp_path / "model.onnx")
    running.trial._process.send_signal(signal.SIGSEGV)
    assert running.outcome() == "its trial was ended by SIGSEGV"


PARENT = """
import sys, threading, time
from pathlib import Path
from drone_kd.backends.model_file import read_model_file
from drone_kd.ros.model_trial import Trial
from drone_kd.ros.params import Settings
from drone_kd.paths import parameter_defaults
trial = Trial()
settings = Settings.from_parameters(parameter_defaults("detector.yaml"))
threading.Thread(target=trial, args=(read_model_file(sys.argv[1]), settings)).start()
while trial._process is None:
    time.sleep(0.01)
priority = Path(f"/proc/{trial._process.pid}/stat")
while priority.read_text().split()[18] == "0":  # until it has set itself up
    time.sleep(0.01)
print(trial._process.pid, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_child_ends_with_a_killed_node(tmp_path):
    write_endless_model(tmp_path / "model.onnx")
    command = [sys.executable, "-c", PARENT, str(tmp_path / "model.onnx")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        descriptor = os.pidfd_open(child)
        parent.kill()
    with os.fdopen(descriptor):
        # Another process's child cannot be waited for: its descriptor becomes readable at its end.
        readable, _, _ = select.select([descriptor], [], [], 60)
    assert readable
