"""The report in processes, with a simulated TensorRT (helpers/simulated) and without any."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import only_message, run
from drone_kd.commands import report
from tiny_model import tiny_spec, with_golden, write_bright_cell_model

SIMULATED = Path(__file__).parents[1] / "helpers" / "simulated"
# A small model in place of the package's.
REPORT = """
import sys
from pathlib import Path
from drone_kd.commands import report
report.default_model_path = lambda: Path(sys.argv[1])
from drone_kd.cli import main
sys.exit(main(["report", *sys.argv[2:]]))
"""


@pytest.fixture
def start_report(model, tmp_path, monkeypatch):
    """Start the command as a process; it is killed at the end of the test."""
    with_golden(model)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SIMULATED), *sys.path]))
    processes = []

    def start(*options):
        command = [sys.executable, "-c", REPORT, str(model), "--output", str(tmp_path / "out")]
        command += ["--frames", "2", "--soak", "1", *map(str, options)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen(command, **streams))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_interrupted_report_goes_on_and_passes(start_report, tmp_path):
    other = with_golden(write_bright_cell_model(tmp_path / "other.onnx", tiny_spec(), cell=16))
    first = start_report(other)
    for line in first.stdout:
        if line.startswith("drone-kd: step 2 of 14"):
            break
    first.send_signal(signal.SIGINT)
    rest, _ = first.communicate(timeout=60)
    assert first.returncode == 130, rest
    assert rest.splitlines()[-1] == f"drone-kd: interrupted; {report.INTERRUPTED}"
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert content["verdict"] == "incomplete"
    assert {name: step["status"] for name, step in content["steps"].items()} == {
        "build: model.onnx": "pass"
    }

    second = start_report(other)
    output, _ = second.communicate(timeout=240)
    assert second.returncode == 0, output
    # A build is checked again, as its engine may be gone; what the first one took is kept.
    assert output.count("drone-kd: step 1 of 14") == 2
    built = content["steps"]["build: model.onnx"]
    folder = tmp_path / "out"
    content = json.loads((folder / "report.json").read_text())
    assert content["steps"]["build: model.onnx"] == built
    assert content["verdict"] == "pass" and len(content["steps"]) == 14
    assert content["steps"]["interrupted build: model.onnx"]["result"]["interrupted"]
    assert content["models"] == ["model.onnx", "other.onnx"]
    page = (folder / "report.md").read_text()
    assert page.startswith("# Device report: pass\n")
    for text in (page, json.dumps(content)):
        assert str(tmp_path) not in text and "/home" not in text
    assert sorted(path.name for path in folder.glob("layers-*")) == [
        "layers-model.onnx.json",
        "layers-other.onnx.json",
    ]


@pytest.mark.slow
def test_without_tensorrt_the_rest_is_measured(start_report, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    process = start_report()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "verdict      INCOMPLETE" in output, output
    steps = json.loads((tmp_path / "out" / "report.json").read_text())["steps"]
    statuses = {name.partition(":")[0]: step["status"] for name, step in steps.items()}
    passed = {name for name, status in statuses.items() if status == "pass"}
    assert passed == {"onnxruntime", "swap", "soak"}
    assert steps["build: model.onnx"]["error"] == "TensorRT is not installed"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["missing.onnx"], "missing.onnx: expected a model file: No such file"),
        (["model.engine"], "engines made elsewhere"),
        (["--minutes", "0"], "expected a whole number ≥ 1, got '0'"),
        (["--output", "/dev/null"], "Not a directory"),
    ],
)
def test_wrong_input_is_one_line_and_2(options, says, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("report", *options) == 2
    assert says in only_message(capfd)
    assert not list(tmp_path.iterdir())


def test_models_of_one_name_are_told_apart(model, tmp_path):
    (tmp_path / "b").mkdir()
    other = write_bright_cell_model(tmp_path / "b" / "model.onnx")
    assert report._labelled([model, other]) == {"model.onnx": model, "model-2.onnx": other}
