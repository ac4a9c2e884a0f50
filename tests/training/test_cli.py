import json
import subprocess
import sys

import pytest

from drone_kd.cli import main


def test_evaluate_prints_and_writes_json(tiny_data, tiny_teacher, tmp_path, capsys):
    out = tmp_path / "m.json"
    assert main(["evaluate", str(tiny_teacher), "--data", str(tiny_data), "--json", str(out)]) == 0
    assert json.loads(out.read_text())["images"] == 6
    assert "map50_95" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "model.pt", "--data", "nowhere/data.yaml"],
        ["export", "nowhere/best.pt", "--output", "model.onnx"],
        [
            "distill",
            "--data",
            "nowhere.yaml",
            "--teacher",
            "none",
            "--student",
            "yolo11n.yaml",
            "--output",
            "out",
        ],
        ["generate", "--output", "out", "--train", "0", "--val", "1"],
    ],
)
def test_bad_input_gives_one_line_and_exit_code_2(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_commands_as_typed(tiny_data, tiny_teacher, tmp_path):
    output = tmp_path / "model.onnx"
    command = [
        sys.executable,
        "-m",
        "training",
        "export",
        str(tiny_teacher),
        "--output",
        str(output),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "graph problems" in done.stdout and output.is_file()


def test_compare_prints_its_table(tiny_data, tiny_teacher, tmp_path, capsys):
    command = ["compare", "--data", str(tiny_data), "--teacher", str(tiny_teacher)]
    command += ["--student", "aerial-student.yaml", "--output", str(tmp_path), "--epochs", "1"]
    command += ["--imgsz", "64", "--batch", "6", "--no-val", "--seeds", "3", "--select", "0.5"]
    command += ["--arms", "plain", "terms=class", "--set", "mosaic=0", "--set", "close_mosaic=0"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "| plain | 1 |" in printed and "| terms=class | 1 |" in printed
    assert (tmp_path / "compare.csv").read_text().count("\n") == 3
    assert len((tmp_path / "val.txt").read_text().splitlines()) == 6  # half of the 12 for training
