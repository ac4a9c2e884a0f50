"""Nothing leaves the machine unasked."""

import os
import subprocess
import sys

import pytest

from drone_kd_training import isolation
from tiny_training import SIZE

pytestmark = pytest.mark.slow  # imports torch in another process

# Runs the command line and notes every attempt to leave the machine, which libraries may hide.
WITHOUT_NETWORK = """
import socket, sys

def refuse(*address, **_):
    with open(sys.argv[1], "a") as file:
        file.write(f"{address}\\n")
    raise OSError("no network in this test")

def connect(self, address):
    if self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1"):
        return works(self, address)
    refuse(address)

works, socket.socket.connect = socket.socket.connect, connect
socket.getaddrinfo = socket.gethostbyname = refuse
"""
COMMAND = "from drone_kd.cli import main; sys.exit(main(sys.argv[2:]))"
# What Ultralytics would do by itself: report a training, and look for an update, a font, weights.
ONLINE = """
from drone_kd_training.models import checkpoints
from ultralytics.utils import checks, downloads, events
assert not events.events.enabled
checks.check_pip_update_available()
checks.check_font("Arial.Unicode.ttf")
for name in ("yolo26n.pt", "misspelt.pt"):
    try:
        downloads.attempt_download_asset(name)
    except ConnectionError as error:
        assert "DRONE_KD_DOWNLOADS=1" in str(error)
"""


@pytest.fixture
def without_network(tmp_path):
    """Run code in a new process; return it and the addresses it tried to reach."""

    def run(code, *arguments, **variables):
        # Ultralytics is silent in tests: this process must not look like one.
        hidden = ("PYTEST_", "YOLO_", "ULTRALYTICS_", "GITHUB_")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
        environment |= {"YOLO_CONFIG_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_NETWORK + code, str(tmp_path / "tried"), *arguments],
            env=environment | variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        tried = tmp_path / "tried"
        return done, tried.read_text() if tried.exists() else ""

    return run


def test_distillation_does_not_leave_the_machine(
    without_network, tiny_data, square_detector, tmp_path
):
    command = ["distill", "--data", str(tiny_data), "--teacher", str(square_detector)]
    command += ["--student", str(square_detector), "--epochs", "1", "--batch", "6"]
    command += ["--imgsz", str(SIZE), "--terms", "class", "--output", str(tmp_path / "run")]
    done, tried = without_network(COMMAND, *command)
    assert (done.returncode, tried) == (0, ""), done.stderr
    assert (tmp_path / "run" / "metrics.json").is_file()


@pytest.mark.parametrize("first", ["", "import ultralytics.data, ultralytics.utils.events\n"])
def test_ultralytics_does_not_leave_the_machine_by_itself(without_network, first):
    # A user's own import of Ultralytics comes with its own online check.
    variables = {"YOLO_OFFLINE": "1"} if first else {}
    done, tried = without_network(first + ONLINE, **variables)
    assert (done.returncode, tried) == (0, ""), done.stderr


def test_misspelt_checkpoint_is_an_error_of_one_line(without_network, tiny_data, tmp_path):
    command = ["evaluate", "misspelt.pt", "--data", str(tiny_data)]
    done, tried = without_network(COMMAND, *command)
    assert (done.returncode, tried) == (2, "")
    assert done.stderr.splitlines()[-1] == "drone-kd: error: no checkpoint at misspelt.pt"


def test_stand_ins_are_put_in_once(monkeypatch):
    from ultralytics.utils import downloads

    isolation.cut_off_ultralytics()
    first = downloads.safe_download
    isolation.cut_off_ultralytics()
    assert downloads.safe_download is first
