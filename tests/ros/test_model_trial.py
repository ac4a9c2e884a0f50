"""Trial of a model in a process of its own."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import rclpy.serialization

from drone_kd.backends.model_file import read_model_file
from drone_kd.core.model_spec import ModelError
from drone_kd.paths import parameter_defaults
from drone_kd.ros import model_trial
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


@pytest.mark.slow
def test_usable_model_passes(tmp_path):
    Trial()(read_model_file(write_bright_cell_model(tmp_path / "model.onnx")), settings())


@pytest.mark.slow
def test_model_that_lacks_a_class_is_refused(tmp_path):
    file = read_model_file(write_bright_cell_model(tmp_path / "model.onnx"))
    with pytest.raises(ModelError, match="knows no class 'lorry'"):
        Trial()(file, settings(classes=["lorry"]))


@pytest.mark.slow
def test_file_that_is_replaced_meanwhile_makes_no_difference(tmp_path):
    file = read_model_file(write_bright_cell_model(tmp_path / "model.onnx"))
    file.path.write_text("something else")
    Trial()(file, settings())


@pytest.mark.slow
def test_reason_is_one_printable_line(tmp_path):
    file = read_model_file(write_with_metadata(tmp_path / "m.onnx", classes=["\x1b[2J\n" * 1000]))
    with pytest.raises(ModelError) as caught:
        Trial()(file, settings())
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 400


HAS_GPU = any(Path(device).exists() for device in model_trial._GPUS)


@pytest.mark.slow
@pytest.mark.skipif(HAS_GPU, reason="no limit of memory with a GPU")
def test_model_that_needs_too_much_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(model_trial, "_memory_limit", lambda: 2 * 10**9)
    file = read_model_file(write_greedy_model(tmp_path / "model.onnx", gigabytes=3))
    with pytest.raises(ModelError, match="more than 2000 MB, half of the free memory"):
        Trial()(file, settings())


@pytest.mark.slow
def test_endless_model_is_ended_after_the_time(tmp_path, enough_for_a_trial):
    """It is endless for the second image only."""
    file = read_model_file(write_endless_model(tmp_path / "model.onnx"))
    seconds = enough_for_a_trial
    with pytest.raises(ModelError, match=rf"took longer than {seconds:g} s \(swap_timeout_s\)"):
        Trial()(file, settings(swap_timeout_s=seconds))


def test_messages_of_the_first_results_are_serialized(tmp_path, monkeypatch):
    """Not every string can be."""
    seen = []
    monkeypatch.setattr(rclpy.serialization, "serialize_message", seen.append)
    file = read_model_file(write_bright_cell_model(tmp_path / "model.onnx"))
    task = {"path": "", "sha256": file.sha256, "metadata": dict(file.metadata)}
    model_trial._try({**task, "settings": settings(confidence=0.4).to_json()}, file.content)
    labels, black, textured = seen
    assert labels.class_map[0].class_name == "car"
    assert black.detections == [] and len(textured.detections) > 0


class Running:
    """A trial of an endless model in a thread."""

    def __init__(self, path):
        self.trial, self.error = Trial(), None
        self._file = read_model_file(write_endless_model(path))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        while (process := self.trial._process) is None:
            self._thread.join(0.01)
        self.process = process

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
    running.trial.cancel()
    assert running.outcome() == "its trial was cancelled"
    assert running.process.returncode == -signal.SIGKILL
    with pytest.raises(ModelError, match="cancelled"):
        running.trial(running._file, settings())


def test_trial_ends_when_the_process_has_to(tmp_path):
    file = read_model_file(write_endless_model(tmp_path / "model.onnx"))
    with pytest.raises(ModelError, match="its trial was cancelled"):
        Trial(lambda: True)(file, settings())


def test_crash_of_the_child_is_a_reason(tmp_path):
    running = Running(tmp_path / "model.onnx")
    running.process.send_signal(signal.SIGSEGV)
    assert running.outcome() == "its trial was ended by SIGSEGV"


def ends(descriptor):
    """Return whether the process of a descriptor ends; kill it if it does not.

    Another process's child cannot be waited for: its descriptor becomes readable at its end.
    """
    try:
        return bool(select.select([descriptor], [], [], 20)[0])
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        os.close(descriptor)


@pytest.mark.skipif(sys.platform != "linux", reason="pidfd is Linux's")
def test_process_that_the_child_started_ends_with_it(tmp_path, monkeypatch):
    started = tmp_path / "started"
    code = f"""
import pathlib, subprocess, time
other = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
pathlib.Path("{started}.new").write_text(str(other.pid))
pathlib.Path("{started}.new").rename("{started}")
time.sleep(600)
"""
    monkeypatch.setattr(model_trial, "_CHILD", code)
    running = Running(tmp_path / "model.onnx")
    while not started.exists():
        assert running.process.poll() is None
    descriptor = os.pidfd_open(int(started.read_text()))
    running.trial.cancel()
    assert running.outcome() == "its trial was cancelled"
    assert ends(descriptor)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_child_has_limits_and_is_the_first_to_be_killed(tmp_path):
    running = Running(tmp_path / "model.onnx")
    folder = Path(f"/proc/{running.process.pid}")
    try:
        while "onnxruntime" not in (folder / "maps").read_text():
            assert running.process.poll() is None
        limits = (folder / "limits").read_text().splitlines()
        (core,) = [line.split()[4:6] for line in limits if line.startswith("Max core file size")]
        (data,) = [line.split()[3:5] for line in limits if line.startswith("Max data size")]
        assert core == ["0", "0"]
        assert HAS_GPU or data[0] == data[1] != "unlimited"
        assert (folder / "oom_score_adj").read_text().strip() == "1000"
        assert os.getpriority(os.PRIO_PROCESS, running.process.pid) >= 10
    finally:
        running.trial.cancel()
        running.outcome()


@pytest.mark.slow
def test_child_imports_only_from_where_the_node_does(tmp_path, monkeypatch):
    for name in ("sitecustomize", "json", "drone_kd"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Trial()(read_model_file(write_bright_cell_model(tmp_path / "model.onnx")), settings())
    assert not (tmp_path / "ran").exists()


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
maps = Path(f"/proc/{trial._process.pid}/maps")
while "onnxruntime" not in maps.read_text():  # it has read the model
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
    assert ends(descriptor)
