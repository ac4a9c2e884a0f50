import getpass
from pathlib import Path

import pytest

from drone_kd.device_report import privacy
from drone_kd.device_report.privacy import anonymous, private_names, without_names


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        (
            "the engine /home/jo/.cache/drone_kd/engines/a1.plan was altered",
            "the engine a1.plan was altered",
        ),
        ("~/models/x.onnx: cannot load it", "x.onnx: cannot load it"),
        (
            "'/home/jo/x.onnx', \"/tmp/y\" (/usr/lib/libcudart.so)",
            "'x.onnx', \"y\" (libcudart.so)",
        ),
        ("3 frames/s, 5 of 7 and/or none, 1/2", "3 frames/s, 5 of 7 and/or none, 1/2"),
        ("TensorRT 10.3 fp16, Orin, zero-copy", "TensorRT 10.3 fp16, Orin, zero-copy"),
    ],
)
def test_paths_become_file_names(text, becomes):
    assert anonymous({"lines": [text], "number": 3}, ()) == {"lines": [becomes], "number": 3}


def test_names_are_whole_words():
    assert without_names("joan on drone7: joanna", ("joan", "drone7")) == "… on …: joanna"


def test_folders_user_and_computer_are_private(monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "joan")
    monkeypatch.setattr(privacy, "host_name", lambda: "drone7")
    names = private_names()
    assert {"joan", "drone7", str(Path.cwd())} <= set(names)
    text = f"in {Path.cwd()} of joan at drone7"
    assert anonymous(text, names) == "in … of … at …"


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("/srv/Acme Corp (Berlin)/model.onnx: damaged", "model.onnx: damaged"),
        ("in /home/alice/flight logs, of ALICE", "in …, of …"),
        ("/home/alice/flight logs/.cache/a.plan", "a.plan"),
        ("alice_model.onnx of Alice", "…_model.onnx of …"),
    ],
)
def test_folders_with_blanks_and_names_in_any_case_are_left_out(monkeypatch, text, becomes):
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")
    monkeypatch.setenv("HOME", "/home/alice/flight logs")
    names = private_names([Path("/srv/Acme Corp (Berlin)")])
    assert anonymous(text, names) == becomes
    assert anonymous(anonymous(text, names), names) == becomes


def test_common_names_stay(monkeypatch):
    """They are words of a report and tell nothing about a person."""
    monkeypatch.setattr(getpass, "getuser", lambda: "nvidia")
    monkeypatch.setattr(privacy, "host_name", lambda: "ubuntu")
    assert not {"nvidia", "ubuntu"} & set(private_names())


def test_user_that_the_system_does_not_know(monkeypatch):
    def unknown():
        raise KeyError("uid")

    monkeypatch.setattr(getpass, "getuser", unknown)
    assert str(Path.cwd()) in private_names()
