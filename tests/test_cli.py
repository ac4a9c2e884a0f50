import argparse
import ast
import importlib
import importlib.machinery
import os
import subprocess
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest

from command_line import only_message, run
from drone_kd import cli

needs_training = pytest.mark.skipif(
    not cli.training_is_installed(), reason="needs the training part"
)
COMMANDS = [*cli.ON_BOARD, *(pytest.param(name, marks=needs_training) for name in cli.TRAINING)]


@pytest.fixture
def command(monkeypatch):
    """Replace the command `detect` by one that calls a function of the test."""
    module = types.ModuleType("command_of_the_test")

    def replace_by(function):
        module.run = function
        module.add_options = lambda parser: parser.add_argument("--number", type=int, default=1)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli._COMMANDS, "detect", (module.__name__, "detect objects"))
        return module

    return replace_by


def failing(error):
    def function(arguments):
        raise error

    return function


def test_help_fits_a_screen_and_lists_every_command(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert run("--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 82
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    assert {*cli.ON_BOARD, *cli.TRAINING} <= set(listed)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_fits_a_screen_or_is_grouped(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    assert run(name, "--help") == 0
    text = capsys.readouterr().out
    parser = cli.build_parser(name)[1][name]
    used = [group for group in parser._action_groups if group._group_actions]
    assert len(text.splitlines()) <= 40 or len(used) >= 4
    assert text.startswith(f"usage: drone-kd {name} ") and "None" not in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_terminal_of_80_columns(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(name, "--help") == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_shows_its_default(name):
    parser = cli.build_parser(name)[1][name]
    formatter = parser._get_formatter()
    for action in parser._actions:
        is_switch = action.nargs == 0 and action.default is not True
        if not action.option_strings or is_switch or action.help == argparse.SUPPRESS:
            continue
        text = formatter._expand_help(action)
        assert "(required" in text or "(default: " in text, action.option_strings
        assert text.count("default: ") <= 1, text


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["flay"],
        *(pytest.param([name, "--help"], marks=needs_training) for name in cli.TRAINING),
    ],
)
def test_no_heavy_library_is_imported_without_need(arguments):
    script = (
        "import sys; from drone_kd.cli import main; main(sys.argv[1:]); "
        "print(sorted({'cv2', 'torch', 'ultralytics', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["detct"], "unknown command 'detct': did you mean detect?"),
        (["xyz"], "unknown command 'xyz': drone-kd --help lists them"),
        ([], "expected a command"),
        (["--colour"], "unrecognized arguments: --colour"),
        (["detect", "--colour"], "(see drone-kd detect --help)"),
    ],
)
def test_wrong_call_is_one_line_and_2(typed, says, capfd):
    assert run(*typed) == 2
    assert says in only_message(capfd)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ValueError("expected 1, got 2\nmore"), 2, "drone-kd: error: expected 1, got 2"),
        (FileNotFoundError(2, "No such file", "x"), 2, "No such file"),
        (PermissionError(13, "Permission denied", "x"), 2, "Permission denied"),
        (RuntimeError("no GPU"), 1, "drone-kd: error: no GPU"),
        (RuntimeError(), 1, "drone-kd: error: RuntimeError"),
        (OSError(28, "No space left on device"), 1, "No space left"),
        (ModuleNotFoundError("no", name="jinja2"), 2, "detect needs the Python package jinja2"),
        (KeyboardInterrupt(), 130, "drone-kd: interrupted"),
    ],
)
def test_failure_is_one_line_and_its_exit_code(error, code, says, command, capfd):
    command(failing(error))
    assert run("detect") == code
    assert says in only_message(capfd)


def test_interrupted_command_says_what_is_kept(command, capfd):
    command(failing(KeyboardInterrupt())).INTERRUPTED = "finished work is kept"
    assert run("detect") == 130
    assert only_message(capfd) == "drone-kd: interrupted; finished work is kept"


def test_traceback_on_request(command, monkeypatch):
    monkeypatch.setenv("DRONE_KD_TRACEBACK", "1")
    command(failing(ValueError("wrong")))
    with pytest.raises(ValueError, match="wrong"):
        run("detect")


def test_exit_code_and_typed_command_reach_and_leave_the_command(command):
    seen = []
    command(lambda arguments: seen.append(arguments) or 3)
    assert run("detect", "--number", "7") == 3
    assert seen[0].number == 7 and seen[0].command_line == "drone-kd detect --number 7"


def test_training_command_without_the_training_part(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "drone_kd_training", None)
    for options in ([], ["--help"], ["--data", "x"]):
        assert run("distill", *options) == 2
        assert "distill needs the training part: pip install" in only_message(capfd)
    assert run("--help") == 0
    assert "training: not installed" in capfd.readouterr().out


def test_folder_named_like_the_training_part_is_not_it(tmp_path, monkeypatch):
    (tmp_path / "drone_kd_training").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [importlib.machinery.PathFinder])
    monkeypatch.delitem(sys.modules, "drone_kd_training", raising=False)
    importlib.invalidate_caches()
    assert importlib.util.find_spec("drone_kd_training") is not None
    assert not cli.training_is_installed()


def test_old_python_is_one_line_and_2(monkeypatch, capfd):
    ast.parse(Path(cli.__file__).read_text(encoding="utf-8"), feature_version=(3, 9))
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    assert run("--help") == 2
    assert "expected Python 3.10 or newer" in only_message(capfd)


def test_version_names_python_and_the_libraries(capsys):
    assert run("--version") == 0
    names = [line[:14].strip() for line in capsys.readouterr().out.splitlines()]
    libraries = ["ONNX Runtime", "TensorRT", "torch", "Ultralytics"]
    assert names == ["drone_kd", "Python", "training part", *libraries]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("drone-kd de", {"detect"}),
        ("drone-kd detect --max", {"--max-detections", "--max-megapixels"}),
        ("drone-kd detect --runtime ten", {"tensorrt"}),
        ("drone-kd detect fra", {"frame.jpg"}),
        pytest.param(
            "drone-kd export --precision ", {"fp32", "fp16", "int8"}, marks=needs_training
        ),
        pytest.param("drone-kd distill --teacher-scale 1.", {"1.5"}, marks=needs_training),
    ],
)
def test_completion(line, offered, tmp_path):
    pytest.importorskip("argcomplete", reason="completion needs argcomplete")
    answer = tmp_path / "answer"
    (tmp_path / "frame.jpg").touch()
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    command = [sys.executable, "-m", "drone_kd.cli"]
    subprocess.run(command, cwd=tmp_path, env=environment, timeout=60, check=True)
    assert {word.strip() for word in answer.read_text().splitlines()} == offered


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_function_to_run(name):
    module, text = cli._COMMANDS[name]
    assert callable(importlib.import_module(module).run)
    assert text[0].islower() and not text.endswith(".")


def test_closed_pipe_is_no_error(tmp_path):
    for i in range(200):  # more names than a pipe's buffer and one line hold
        cv2.imwrite(str(tmp_path / f"{i:03d}{'n' * 200}.png"), np.zeros((8, 8, 3), np.uint8))
    command = [sys.executable, "-m", "drone_kd.cli", "detect", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        # ONNX Runtime may complain of the processor, and a slow machine shows progress.
        errors = process.stderr.read()
        assert not any(
            word in errors for word in (b"Traceback", b"BrokenPipe", b"drone-kd: error")
        )
        assert process.wait() == 141


@pytest.mark.parametrize(
    "arguments",
    [
        ["detect", "\x1b]0;evil\x07.png"],
        ["detect", "a\x85b\u2028c\u202e.png"],
        ["detect", "--iou", "\x1b[2J", "a.png"],
        ["\x1b[2J"],
        ["score", "\x1b[2J"],
    ],
)
def test_error_is_one_printable_line(arguments, capfd):
    assert cli.main(arguments) == 2
    assert only_message(capfd).isprintable()
