"""Building engines and keeping them, on a simulated TensorRT and GPU (simulated_tensorrt.py)."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from drone_kd import cli
from drone_kd.backends import open_backend
from drone_kd.core.model_spec import ModelError
from simulated_tensorrt import VERSIONS, SimulatedTensorrt, forget_modules
from tiny_model import write_bright_cell_model

every_version = pytest.mark.parametrize("simulated_tensorrt", VERSIONS, indirect=True)


@pytest.fixture
def engines(tmp_path):
    return tmp_path / "cache" / "drone_kd" / "engines"


def open_quietly(model):
    """Open with TensorRT; return what was said and the model's answer to a picture."""
    said = []
    backend = open_backend(model, runtime="tensorrt", progress=said.append)
    return said, backend.infer(np.full((1, 64, 64, 3), 200, np.uint8))


@every_version
def test_an_engine_is_built_once(simulated_tensorrt, model, engines):
    said, first = open_quietly(model)
    assert simulated_tensorrt.builds == 1
    assert "building the engine of model.onnx (fp32) with TensorRT" in said[0]
    assert said[-1].startswith("engine built in ")
    said, second = open_quietly(model)
    assert (simulated_tensorrt.builds, said) == (1, [])
    np.testing.assert_array_equal(first, second)
    assert not list(engines.glob("*.tmp"))


def test_only_this_user_can_enter_the_cache(simulated_tensorrt, model, engines):
    engines.mkdir(parents=True, mode=0o755)
    open_quietly(model)
    assert stat.S_IMODE(engines.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
def test_a_cache_of_somebody_else_is_not_used(simulated_tensorrt, model, engines):
    engines.mkdir(parents=True)
    os.chown(engines, 65534, -1)
    with pytest.raises(ModelError, match="belongs to another user"):
        open_quietly(model)
    assert simulated_tensorrt.builds == 0


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda plan: plan[:-100], "is truncated"),
        (lambda plan: plan[:-1] + bytes([plan[-1] ^ 1]), "was altered"),
        (lambda plan: b"", "is truncated"),
    ],
)
def test_a_damaged_engine_never_reaches_tensorrt_and_is_built_again(
    simulated_tensorrt, model, engines, monkeypatch, damage, says
):
    _, before = open_quietly(model)
    (plan,) = engines.glob("*.plan")
    plan.write_bytes(damage(plan.read_bytes()))
    loaded = []
    runtime = simulated_tensorrt.module.Runtime
    load = runtime.deserialize_cuda_engine
    monkeypatch.setattr(
        runtime,
        "deserialize_cuda_engine",
        lambda self, content: loaded.append(content) or load(self, content),
    )
    said, after = open_quietly(model)
    assert f"{plan} {says}" in said[0] and "building it again" in said[0]
    assert simulated_tensorrt.builds == 2
    assert loaded == [simulated_tensorrt.plan(model.read_bytes())]
    np.testing.assert_array_equal(before, after)


def test_a_damaged_engine_is_gone_even_if_no_other_can_be_built(
    simulated_tensorrt, model, engines
):
    open_quietly(model)
    (plan,) = engines.glob("*.plan")
    plan.write_bytes(b"damaged")
    simulated_tensorrt.build_error = "Error Code 10"
    with pytest.raises(ModelError, match="Error Code 10"):
        open_quietly(model)
    assert not plan.exists()


def test_a_damaged_record_is_built_again(simulated_tensorrt, model, engines):
    open_quietly(model)
    (record,) = engines.glob("*.json")
    record.write_text("{")
    said, _ = open_quietly(model)
    assert "cannot be read" in said[0] and simulated_tensorrt.builds == 2


def test_another_version_or_device_or_model_builds_its_own(
    simulated_tensorrt, model, engines, monkeypatch, tmp_path
):
    open_quietly(model)
    later = SimulatedTensorrt("10.13", simulated_tensorrt.gpu)
    monkeypatch.setitem(sys.modules, "tensorrt", later.module)
    forget_modules()
    said, _ = open_quietly(model)
    assert later.builds == 1 and "building it again" not in said[0]

    # Somebody renames the old engine to the new one's name, with its record.
    old, new = sorted(engines.glob("*.plan"), key=lambda path: path.stat().st_mtime)
    for suffix in (".plan", ".json"):
        new.with_suffix(suffix).write_bytes(old.with_suffix(suffix).read_bytes())
    said, _ = open_quietly(model)
    assert "was built for something else" in said[0] and later.builds == 2

    other = write_bright_cell_model(tmp_path / "other.onnx", cell=16)
    open_quietly(other)
    assert later.builds == 3
    assert len(list(engines.glob("*.plan"))) == 3


def test_an_engine_that_does_not_load_is_built_again_once(simulated_tensorrt, model):
    open_quietly(model)
    simulated_tensorrt.load_error = "Error Code 6: version tag does not match"
    with pytest.raises(ModelError, match="refuses the engine: Error Code 6: version tag"):
        open_quietly(model)
    assert simulated_tensorrt.builds == 2


def test_an_engine_that_only_lacks_memory_is_kept(simulated_tensorrt, model):
    open_quietly(model)
    simulated_tensorrt.gpu.errors["cudaMalloc"] = 2
    with pytest.raises(ModelError, match="out of memory"):
        open_quietly(model)
    simulated_tensorrt.gpu.errors.clear()
    simulated_tensorrt.execute_error = "out of memory"
    with pytest.raises(ModelError, match="out of memory"):
        open_quietly(model)
    simulated_tensorrt.execute_error = ""
    open_quietly(model)
    assert simulated_tensorrt.builds == 1


def test_timings_serve_the_next_build_and_damaged_ones_do_not(
    simulated_tensorrt, model, engines, tmp_path
):
    open_quietly(model)
    assert simulated_tensorrt.timings == b""
    other = write_bright_cell_model(tmp_path / "other.onnx", cell=16)
    open_quietly(other)
    assert simulated_tensorrt.timings == b"timed "
    (timings,) = engines.glob("*.timings")
    timings.write_bytes(b"damaged")
    open_quietly(write_bright_cell_model(tmp_path / "third.onnx", cell=32))
    assert simulated_tensorrt.timings == b""


# Opens a model on a simulation of its own; says what happens, and builds when it is told to.
OPEN_IN_A_PROCESS = """
import ctypes, sys
from simulated_tensorrt import SimulatedGpu, SimulatedTensorrt
simulation = SimulatedTensorrt("10.3", SimulatedGpu())
sys.modules["tensorrt"] = simulation.module
ctypes.CDLL = simulation.gpu.library

def during_build():
    print("builds", flush=True)
    sys.stdin.readline()

simulation.during_build = during_build
from drone_kd.backends import open_backend
open_backend(sys.argv[1], progress=lambda line: print(line, flush=True))
print("opened after", simulation.builds, "builds", flush=True)
"""


@pytest.fixture
def open_in_a_process(model, tmp_path, monkeypatch):
    """Start a process that opens the model; all share a cache, and end with the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    processes = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", OPEN_IN_A_PROCESS, str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def read_until(process, text):
    """Read lines up to one that contains `text`."""
    for line in process.stdout:
        if text in line:
            return line
    pytest.fail(f"it ended without a line about {text!r}")


def test_two_processes_that_build_at_once_build_once(open_in_a_process):
    first = open_in_a_process()
    read_until(first, "builds")
    second = open_in_a_process()
    read_until(second, "another process builds this engine; waiting for it")
    first.stdin.write("go on\n")
    first.stdin.flush()
    assert read_until(first, "opened") == "opened after 1 builds\n"
    assert read_until(second, "opened") == "opened after 0 builds\n"


def test_a_build_that_is_killed_leaves_the_way_free(open_in_a_process, engines):
    first = open_in_a_process()
    read_until(first, "builds")
    first.kill()
    first.wait()
    assert [path.suffix for path in engines.iterdir()] == [".lock"]
    second = open_in_a_process()
    second.stdin.write("go on\n")
    second.stdin.flush()
    assert read_until(second, "opened") == "opened after 1 builds\n"


def test_a_full_disk_leaves_nothing_behind(simulated_tensorrt, model, engines, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(ModelError) as error:
            open_quietly(model)
    assert str(error.value).startswith(f"{model}: its engine cannot be kept: ")
    assert "No space left on device" in str(error.value) and "\n" not in str(error.value)
    assert [path.suffix for path in engines.iterdir()] == [".lock"]
    open_quietly(model)
    assert simulated_tensorrt.builds == 2


def test_no_permission_is_said_before_anything_is_built(
    simulated_tensorrt, model, tmp_path, request
):
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o500)
    request.addfinalizer(lambda: cache.chmod(0o700))
    if os.geteuid() == 0:  # root may write everywhere
        for folder in (tmp_path, *list(tmp_path.parents)[:-1]):
            if folder.stat().st_uid == 0 and folder != Path("/tmp"):
                folder.chmod(folder.stat().st_mode | 0o055)
        os.seteuid(65534)
        request.addfinalizer(lambda: os.seteuid(0))
    with pytest.raises(ModelError, match=r"its engine cannot be kept: .*Permission denied"):
        open_quietly(model)
    assert simulated_tensorrt.builds == 0


def test_nothing_is_built_in_flight(simulated_tensorrt, model):
    with pytest.raises(ModelError, match=r"none is built in flight: drone-kd build .*model.onnx"):
        open_backend(model, may_build=False)
    assert simulated_tensorrt.builds == 0
    open_quietly(model)
    assert "TensorRT" in open_backend(model, may_build=False).name


@pytest.mark.parametrize("suffix", ["engine", "plan", "trt"])
def test_engines_made_elsewhere_are_refused(simulated_tensorrt, tmp_path, suffix):
    with pytest.raises(ModelError, match=r"trtexec.* not accepted: .* native code .* drone-kd bu"):
        open_backend(tmp_path / f"model.{suffix}")


def test_a_build_can_be_interrupted(simulated_tensorrt, model, engines, monkeypatch):
    from drone_kd.backends.tensorrt import build

    monkeypatch.setattr(build, "_PROGRESS_SECONDS", 0.01)
    waiting, stopping = threading.Event(), threading.Event()

    def during_build():
        assert waiting.wait(20)
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does
        assert stopping.wait(20)

    def progress(line):
        if line.startswith("building for"):
            waiting.set()
        if line == "stopping the build":
            stopping.set()

    simulated_tensorrt.during_build = during_build
    with pytest.raises(KeyboardInterrupt):
        open_backend(model, progress=progress)
    assert simulated_tensorrt.was_stopped
    assert not list(engines.glob("*.plan"))


@every_version
def test_a_long_build_shows_that_it_lives(simulated_tensorrt, model, monkeypatch):
    from drone_kd.backends.tensorrt import build

    monkeypatch.setattr(build, "_PROGRESS_SECONDS", 0.01)
    told = threading.Event()
    simulated_tensorrt.during_build = lambda: told.wait(20)
    said = []

    def progress(line):
        said.append(line)
        if line.startswith("building for"):
            told.set()

    open_backend(model, progress=progress)
    where = "" if simulated_tensorrt.version == "8.6" else ": Tactics, 1 of 2"
    assert f"building for 0 s{where}" in said


def test_the_command_builds(simulated_tensorrt, model, capfd):
    assert cli.main(["build", str(model)]) == 0
    output = capfd.readouterr()
    assert "building the engine of model.onnx" in output.err
    assert output.out.startswith("TensorRT 10.3 fp32, Orin, ")
    assert simulated_tensorrt.builds == 1


def test_the_command_says_why_it_cannot(simulated_tensorrt, model, capfd):
    simulated_tensorrt.build_error = "Error Code 10"
    assert cli.main(["build", str(model)]) == 2
    assert "drone-kd: error: " in capfd.readouterr().err


def test_without_tensorrt_the_command_says_so(model):
    block = "import sys; sys.modules['tensorrt'] = None; from drone_kd.cli import main; "
    command = [sys.executable, "-c", block + f"sys.exit(main(['build', {str(model)!r}]))"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("drone-kd: error: TensorRT cannot be imported")
    assert done.stderr.count("\n") == 1
