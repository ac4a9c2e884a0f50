"""On board nothing but DDS uses the network."""

import subprocess
import sys

import pytest

import recorded_network
from drone_kd.paths import selftest_image_path


@pytest.fixture
def record(monkeypatch, tmp_path):
    """Record what child processes try to reach; return the folder of the record."""
    for name, value in recorded_network.environment(tmp_path / "network").items():
        monkeypatch.setenv(name, value)
    return tmp_path / "network"


@pytest.mark.slow  # a process of its own
def test_node_makes_no_connection_of_its_own(record, start_detector, model, ros_domain_id):
    process = start_detector(model=model, autostart=True)
    process.wait_for_line("Configured and activated")
    process.end()
    assert recorded_network.attempts(record) == ""


@pytest.mark.slow  # processes of their own
@pytest.mark.parametrize(
    "command",
    [
        ["detect", "MODEL", "IMAGE"],
        ["bench", "MODEL", "--frames", "2"],
        ["lineage", "MODEL"],
    ],
    ids=lambda command: command[0],
)
def test_command_on_board_makes_no_connection(command, record, model, tmp_path):
    names = {"IMAGE": str(selftest_image_path()), "MODEL": str(model)}
    arguments = [names.get(word, word) for word in command]
    subprocess.run(
        [sys.executable, "-m", "drone_kd.cli", *arguments], cwd=tmp_path, check=True, timeout=90
    )
    assert recorded_network.attempts(record) == ""


# ONNX Runtime's reports go through sockets that Python does not see, but need files in the home.
@pytest.mark.slow  # a process of its own
@pytest.mark.parametrize("package", ["drone_kd", "drone_kd_training"])
def test_no_identifier_of_the_machine_is_stored(package, model, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    code = f"import {package}, onnxruntime; onnxruntime.InferenceSession({str(model)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=90)
    assert [path for path in tmp_path.rglob("*") if "microsoft" in str(path).lower()] == []
