"""Engine builds and the engine cache, on a simulated TensorRT and GPU (simulated_tensorrt.py)."""

import errno
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from drone_kd import cli, machine
from drone_kd.backends import open_backend
from drone_kd.core.model_spec import ModelError
from simulated_tensorrt import VERSIONS, SimulatedTensorrt, forget_modules
from tiny_model import write_bright_cell_model

every_version = pytest.mark.parametrize("simulated_tensorrt", VERSIONS, indirect=True)


@pytest.fixture
def engines(tmp_path):
    return tmp_path / "cache" / "drone_kd" / "engines"


def open_tensorrt(model):
    """Open with TensorRT; return the progress lines and the model's output for one image.

    The models here have no golden images, which the last line says.
    """
    lines: list[str] = []
    backend = open_backend(model, runtime="tensorrt", progress=lines.append)
    assert "has no golden images, so its engine is not checked" in lines.pop()
    return lines, backend.infer(np.full((1, 64, 64, 3), 200, np.uint8))


@every_version
def test_engine_is_built_once_and_then_read_from_the_cache(simulated_tensorrt, model, engines):
    lines, first = open_tensorrt(model)
    assert simulated_tensorrt.builds == 1
    assert "building the engine of model.onnx (fp32) with TensorRT" in lines[0]
    assert lines[-1].startswith("engine built in ")
    lines, second = open_tensorrt(model)
    assert (simulated_tensorrt.builds, lines) == (1, [])
    np.testing.assert_array_equal(first, second)
    assert not list(engines.glob("*.tmp"))


def test_cache_folder_is_made_private(simulated_tensorrt, model, engines):
    engines.mkdir(parents=True, mode=0o755)
    open_tensorrt(model)
    assert stat.S_IMODE(engines.stat().st_mode) == 0o700


def test_cache_of_another_user_is_rejected(simulated_tensorrt, model, engines, monkeypatch):
    engines.mkdir(parents=True)
    monkeypatch.setattr(os, "geteuid", lambda: engines.stat().st_uid + 1)
    with pytest.raises(ModelError, match="expected a folder of your own, got one of uid"):
        open_tensorrt(model)
    assert simulated_tensorrt.builds == 0


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda plan: plan[:-100], "is truncated"),
        (lambda plan: plan[:-1] + bytes([plan[-1] ^ 1]), "was altered"),
        (lambda plan: b"", "is truncated"),
    ],
)
def test_damaged_engine_never_reaches_tensorrt_and_is_rebuilt(
    simulated_tensorrt, model, engines, monkeypatch, damage, problem
):
    _, before = open_tensorrt(model)
    (plan,) = engines.glob("*.plan")
    plan.write_bytes(damage(plan.read_bytes()))
    loaded = []
    runtime = simulated_tensorrt.module.Runtime
    load = runtime.deserialize_cuda_engine

    def record(self, content):
        loaded.append(content)
        return load(self, content)

    monkeypatch.setattr(runtime, "deserialize_cuda_engine", record)
    lines, after = open_tensorrt(model)
    assert f"{plan} {problem}" in lines[0] and "building it again" in lines[0]
    assert simulated_tensorrt.builds == 2
    assert loaded == [simulated_tensorrt.plan(model.read_bytes())]
    np.testing.assert_array_equal(before, after)


def test_damaged_engine_is_removed_even_if_the_rebuild_fails(simulated_tensorrt, model, engines):
    open_tensorrt(model)
    (plan,) = engines.glob("*.plan")
    plan.write_bytes(b"damaged")
    simulated_tensorrt.build_error = "Error Code 10"
    with pytest.raises(ModelError, match="Error Code 10"):
        open_tensorrt(model)
    assert not plan.exists()


def test_engine_with_a_damaged_record_is_rebuilt(simulated_tensorrt, model, engines):
    open_tensorrt(model)
    (record,) = engines.glob("*.json")
    record.write_text("{")
    lines, _ = open_tensorrt(model)
    assert "cannot be read" in lines[0] and simulated_tensorrt.builds == 2


def test_another_tensorrt_or_model_gets_its_own_engine(
    simulated_tensorrt, model, engines, monkeypatch, tmp_path
):
    open_tensorrt(model)
    later = SimulatedTensorrt("10.13", simulated_tensorrt.gpu)
    monkeypatch.setitem(sys.modules, "tensorrt", later.module)
    forget_modules()
    lines, _ = open_tensorrt(model)
    assert later.builds == 1 and "building it again" not in lines[0]

    # The old engine and its record under the new one's name.
    old, new = sorted(engines.glob("*.plan"), key=lambda path: path.stat().st_mtime)
    for suffix in (".plan", ".json"):
        new.with_suffix(suffix).write_bytes(old.with_suffix(suffix).read_bytes())
    lines, _ = open_tensorrt(model)
    assert "was built for something else" in lines[0] and later.builds == 2

    other = write_bright_cell_model(tmp_path / "other.onnx", cell=16)
    open_tensorrt(other)
    assert later.builds == 3
    assert len(list(engines.glob("*.plan"))) == 3


def test_engine_that_does_not_load_is_rebuilt_once(simulated_tensorrt, model):
    open_tensorrt(model)
    simulated_tensorrt.load_error = "Error Code 6: version tag does not match"
    with pytest.raises(ModelError, match="rejects the engine: Error Code 6: version tag"):
        open_tensorrt(model)
    assert simulated_tensorrt.builds == 2


def test_engine_stays_in_the_cache_when_memory_is_short(simulated_tensorrt, model):
    open_tensorrt(model)
    simulated_tensorrt.gpu.errors["cudaMalloc"] = 2
    with pytest.raises(ModelError, match="out of memory"):
        open_tensorrt(model)
    simulated_tensorrt.gpu.errors.clear()
    simulated_tensorrt.execute_error = "out of memory"
    with pytest.raises(ModelError, match="out of memory"):
        open_tensorrt(model)
    simulated_tensorrt.execute_error = ""
    open_tensorrt(model)
    assert simulated_tensorrt.builds == 1


def test_timing_cache_is_reused_unless_damaged(simulated_tensorrt, model, engines, tmp_path):
    open_tensorrt(model)
    assert simulated_tensorrt.timings == b""
    other = write_bright_cell_model(tmp_path / "other.onnx", cell=16)
    open_tensorrt(other)
    assert simulated_tensorrt.timings == b"timed "
    (timings,) = engines.glob("*.timings")
    timings.write_bytes(b"damaged")
    third = write_bright_cell_model(tmp_path / "third.onnx", cell=32)
    simulated_tensorrt.build_error = "Error Code 10"
    with pytest.raises(ModelError, match="cannot build it: Error Code 10"):
        open_tensorrt(third)  # the damage is not the reason
    simulated_tensorrt.build_error = ""
    open_tensorrt(third)
    assert simulated_tensorrt.timings == b""


# Opens a model on its own simulation and prints the progress; a build waits for a line on stdin.
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
    """Start a process that opens the model; all share one cache and end with the test."""
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
    """Read lines up to one that contains `text`; fail at a build, which would wait for a line."""
    for line in process.stdout:
        if text in line:
            return line
        if line == "builds\n":
            pytest.fail(f"the process builds instead of {text!r}")
    return pytest.fail(f"the process ended without a line with {text!r}")


def test_two_processes_build_one_engine_once(open_in_a_process):
    first = open_in_a_process()
    read_until(first, "builds\n")
    second = open_in_a_process()
    read_until(second, "another process builds this engine; waiting for it")
    first.stdin.write("go on\n")
    first.stdin.flush()
    assert read_until(first, "opened") == "opened after 1 builds\n"
    assert read_until(second, "opened") == "opened after 0 builds\n"


def test_killed_build_releases_the_lock(open_in_a_process, engines):
    first = open_in_a_process()
    read_until(first, "builds\n")
    first.kill()
    first.wait()
    assert [path.suffix for path in engines.iterdir()] == [".lock"]
    second = open_in_a_process()
    read_until(second, "an earlier build of this engine was killed: for lack of memory")
    read_until(second, "builds\n")
    second.stdin.write("go on\n")
    second.stdin.flush()
    assert read_until(second, "opened") == "opened after 1 builds\n"


def test_full_disk_leaves_no_partial_engine(simulated_tensorrt, model, engines, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(ModelError) as error:
            open_tensorrt(model)
    assert str(error.value).startswith(f"{model}: cannot store its engine: ")
    assert "No space left on device" in str(error.value) and "\n" not in str(error.value)
    assert [path.suffix for path in engines.iterdir()] == [".lock"]
    open_tensorrt(model)
    assert simulated_tensorrt.builds == 2


def test_failed_build_counts_as_ended(simulated_tensorrt, model):
    simulated_tensorrt.build_error = "Error Code 10"
    lines: list[str] = []
    for _ in range(2):
        with pytest.raises(ModelError, match="Error Code 10"):
            open_backend(model, progress=lines.append)
    assert not [line for line in lines if "was killed" in line]


def test_too_little_disk_is_reported_before_the_build(simulated_tensorrt, model, monkeypatch):
    disk = SimpleNamespace(f_bavail=1000, f_frsize=4096)
    monkeypatch.setattr(os, "fstatvfs", lambda folder: disk)
    with pytest.raises(
        ModelError, match=r"cannot store its engine: expected 20 MB of free disk in .*, found 4 MB"
    ):
        open_tensorrt(model)
    assert simulated_tensorrt.builds == 0
    disk.f_bavail = 10_000
    open_tensorrt(model)


def test_unusable_cache_folder_is_reported_before_the_build(simulated_tensorrt, model, tmp_path):
    (tmp_path / "cache").write_text("a file, so that not even root can create a folder in it")
    with pytest.raises(ModelError, match=r"cannot store its engine: .*Not a directory"):
        open_tensorrt(model)
    assert simulated_tensorrt.builds == 0


def test_no_engine_is_built_in_flight(simulated_tensorrt, model):
    with pytest.raises(
        ModelError, match=r"no engine is built in flight, or .*; run: drone-kd build .*model.onnx"
    ):
        open_backend(model, may_build=False)
    assert simulated_tensorrt.builds == 0
    open_tensorrt(model)
    assert "TensorRT" in open_backend(model, may_build=False).name


def test_rebuild_replaces_a_valid_engine(simulated_tensorrt, model, capfd):
    open_tensorrt(model)
    assert cli.main(["build", str(model)]) == 0 and simulated_tensorrt.builds == 1
    assert cli.main(["build", "--rebuild", str(model)]) == 0 and simulated_tensorrt.builds == 2
    assert simulated_tensorrt.timings == b"timed "


def test_interrupted_rebuild_keeps_the_valid_engine(simulated_tensorrt, model):
    open_tensorrt(model)
    simulated_tensorrt.build_error = "interrupted"
    with pytest.raises(ModelError, match="interrupted"):
        open_backend(model, rebuild=True)
    assert open_backend(model, may_build=False).name.startswith("TensorRT")


def test_another_power_mode_needs_another_engine(simulated_tensorrt, model, monkeypatch):
    monkeypatch.setattr(machine, "power_mode", lambda: "15W")
    open_tensorrt(model)
    monkeypatch.setattr(machine, "power_mode", lambda: "MAXN")
    with pytest.raises(ModelError, match=r"power_mode 15W, now MAXN"):
        open_backend(model, may_build=False)
    lines, _ = open_tensorrt(model)
    assert "no engine for this device and mode (power_mode 15W, now MAXN)" in lines[0]
    # Kernel timings of another mode are of no use.
    assert (simulated_tensorrt.builds, simulated_tensorrt.timings) == (2, b"")
    monkeypatch.setattr(machine, "power_mode", lambda: "15W")
    open_tensorrt(model)
    assert simulated_tensorrt.builds == 2


def test_hot_board_loads_its_engine(simulated_tensorrt, model, engines, tmp_path, monkeypatch):
    """A thermal limit lowers max_freq; the record keeps the clock of the build."""
    monkeypatch.setattr(machine, "_CLOCKS", tmp_path)
    (tmp_path / "17000000.gpu").mkdir()
    limit = tmp_path / "17000000.gpu" / "max_freq"
    limit.write_text("1020000000")
    open_tensorrt(model)
    (record,) = engines.glob("*.json")
    assert json.loads(record.read_text())["gpu_mhz"] == 1020
    limit.write_text("624750000")
    open_backend(model, may_build=False)


def test_engine_of_another_board_is_not_loaded(simulated_tensorrt, model, engines, monkeypatch):
    monkeypatch.setattr(machine, "board", lambda: "NVIDIA Jetson AGX Orin")
    open_tensorrt(model)
    (foreign,) = engines.glob("*.plan")
    monkeypatch.setattr(machine, "board", lambda: "NVIDIA Jetson Orin Nano")
    with pytest.raises(
        ModelError, match=r"board NVIDIA Jetson AGX Orin, now NVIDIA Jetson Orin N"
    ):
        open_backend(model, may_build=False)
    open_tensorrt(model)
    (own,) = set(engines.glob("*.plan")) - {foreign}
    for suffix in (".plan", ".json"):
        own.with_suffix(suffix).write_bytes(foreign.with_suffix(suffix).read_bytes())
    with pytest.raises(ModelError, match="found one that was built for something else"):
        open_backend(model, may_build=False)


@pytest.mark.parametrize(
    ("memory", "warns"), [((4e3, 0), True), ((4e3, 2e3), False), ((8e3, 0), False)]
)
def test_board_with_little_memory_and_no_swap_is_warned(
    simulated_tensorrt, model, monkeypatch, memory, warns
):
    found = dict(zip(("total", "swap"), memory, strict=True))
    monkeypatch.setattr("drone_kd.machine.memory_mb", lambda: found)
    lines, _ = open_tensorrt(model)
    assert any("4.0 GB of memory and no swap" in line for line in lines) is warns
    assert simulated_tensorrt.workspace == 1 << 30  # an eighth of the simulated 8 GiB


@pytest.mark.parametrize("suffix", ["engine", "plan", "trt"])
def test_foreign_engine_is_rejected(simulated_tensorrt, tmp_path, suffix):
    with pytest.raises(ModelError, match=r"trtexec.* not accepted: .* native code .* drone-kd bu"):
        open_backend(tmp_path / f"model.{suffix}")


def test_build_can_be_interrupted(simulated_tensorrt, model, engines, monkeypatch):
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
def test_long_build_reports_progress(simulated_tensorrt, model, monkeypatch):
    from drone_kd.backends.tensorrt import build

    monkeypatch.setattr(build, "_PROGRESS_SECONDS", 0.01)
    reported = threading.Event()
    simulated_tensorrt.during_build = lambda: reported.wait(20)
    lines: list[str] = []

    def progress(line):
        if line.startswith("building for"):
            lines.append(line)
            reported.set()

    open_backend(model, progress=progress)
    position = "" if simulated_tensorrt.version == "8.6" else ": Tactics, 1 of 2"
    assert re.fullmatch(rf"building for \d+ s{position}", lines[0])


def test_build_command_prints_the_runtime(simulated_tensorrt, model, capfd):
    assert cli.main(["build", str(model)]) == 0
    output = capfd.readouterr()
    assert "building the engine of model.onnx" in output.err
    assert output.out.startswith("TensorRT 10.3 fp32, Orin, ")
    assert simulated_tensorrt.builds == 1


def test_build_command_reports_a_failed_build(simulated_tensorrt, model, capfd):
    simulated_tensorrt.build_error = "Error Code 10"
    assert cli.main(["build", str(model)]) == 2
    assert "drone-kd: error: " in capfd.readouterr().err


def test_build_command_without_tensorrt_is_one_error_line(model, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    forget_modules()
    assert cli.main(["build", str(model)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("drone-kd: error: TensorRT cannot be imported")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("raise ImportError('libnvinfer.so.10: cannot open shared object file')", "libnvinfer.so"),
        ("raise FileNotFoundError('Could not find: nvinfer')", "Could not find: nvinfer"),
        ("__version__ = '8.0'", "has no attribute"),
    ],
)
def test_mismatched_tensorrt_is_one_error_line(
    model, monkeypatch, tmp_path, capsys, content, reason
):
    """Python module and libraries of different packages, or an old version."""
    (tmp_path / "tensorrt.py").write_text(f"{content}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    forget_modules()
    try:
        assert cli.main(["build", str(model)]) == 2
    finally:
        sys.modules.pop("tensorrt", None)
        forget_modules()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("drone-kd: error: TensorRT cannot be imported") and reason in line
    assert "apt install python3-libnvinfer" in line


@pytest.mark.parametrize("name", ["Builder", "Runtime"])
def test_tensorrt_that_does_not_fit_the_driver_is_one_line(
    simulated_tensorrt, model, monkeypatch, name
):
    def null(self, logger):
        logger.log(simulated_tensorrt.module.ILogger.ERROR, "CUDA initialization failure: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(getattr(simulated_tensorrt.module, name), "__init__", null)
    with pytest.raises(ModelError, match=r"cannot start: CUDA init.* 35; expected the one of"):
        open_tensorrt(model)


def test_jetson_without_tensorrt_is_told_so(model, monkeypatch):
    monkeypatch.setattr("drone_kd.backends.tensorrt_is_installed", lambda: False)
    lines: list[str] = []
    open_backend(model, progress=lines.append)
    assert lines == []
    monkeypatch.setattr("drone_kd.backends.l4t", lambda: "R36.4.3")
    assert "onnxruntime" in open_backend(model, progress=lines.append).name
    assert len(lines) == 1 and "a Jetson without TensorRT's Python module" in lines[0]
    open_backend(model, runtime="onnxruntime", progress=lines.append)
    assert len(lines) == 1
