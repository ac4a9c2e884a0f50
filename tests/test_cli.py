import json
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest

from drone_kd import cli, detector
from tiny_model import write_fixed_model


@pytest.fixture
def pictures(tmp_path):
    """A folder with one picture of one white square, and one without."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    image = np.zeros((128, 256, 3), np.uint8)
    cv2.imwrite(str(folder / "empty.png"), image)
    image[32:64, 96:128] = 255
    cv2.imwrite(str(folder / "one.png"), image)
    return folder


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def only_error_line(capfd):
    """Return standard error after checking that it is one line of ours."""
    error = capfd.readouterr().err
    assert error.startswith("drone-kd: ") and error.count("\n") == 1
    return error


def test_detect_writes_exactly_the_promised_json(model, pictures, tmp_path):
    out = tmp_path / "out.json"
    assert run("detect", model, pictures, "--json", out, "--confidence", "0.9") == 0

    empty, one = json.loads(out.read_text())
    assert empty == {"image": str(pictures / "empty.png"), "detections": []}
    assert one["image"] == str(pictures / "one.png")
    (box,) = one["detections"]
    assert set(box) == {"class", "score", "xyxy"}
    assert box["class"] == "car"
    assert box["score"] == pytest.approx(1.0, abs=1e-3)
    assert box["xyxy"] == pytest.approx([96, 32, 128, 64], abs=1e-3)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_detect_saves_annotated_pictures(model, pictures, tmp_path):
    # Options may stand between model and source.
    save = tmp_path / "drawn"
    assert run("detect", model, "--save", save, "--confidence", "0.9", pictures) == 0
    drawn, original = (cv2.imread(str(folder / "one.png")) for folder in (save, pictures))
    assert (drawn[31, 95:129] != original[31, 95:129]).any(axis=-1).all()


def test_detect_never_overwrites_its_source(model, pictures, capfd):
    before = (pictures / "one.png").read_bytes()
    assert run("detect", model, pictures / "one.png", "--save", pictures) == 2
    assert "overwrite" in only_error_line(capfd)
    assert (pictures / "one.png").read_bytes() == before


def test_detect_counts_frames_of_a_video(model, tmp_path):
    video, out = tmp_path / "flight.avi", tmp_path / "out.json"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 64))
    for value in (0, 255):
        writer.write(np.full((64, 64, 3), value, np.uint8))
    writer.release()
    assert run("detect", model, video, "--json", out, "--save", tmp_path / "drawn") == 0
    records = json.loads(out.read_text())
    assert [record["image"] for record in records] == [f"{video}#0", f"{video}#1"]
    assert [len(record["detections"]) for record in records] == [0, 64]
    assert (tmp_path / "drawn" / "flight.avi_1.jpg").is_file()


def test_detect_limits_the_number(model, tmp_path):
    white, out = tmp_path / "white.png", tmp_path / "out.json"
    cv2.imwrite(str(white), np.full((64, 64, 3), 255, np.uint8))
    assert run("detect", model, white, "--json", out, "--max-detections", "3") == 0
    (record,) = json.loads(out.read_text())
    assert len(record["detections"]) == 3


def test_the_default_model_is_used_when_none_is_named(model, pictures, monkeypatch, capfd):
    monkeypatch.setattr(detector, "default_model_path", lambda: model)
    assert run("detect", pictures, "--confidence", "0.9") == 0
    assert "one.png: 1 car" in capfd.readouterr().out


def test_a_corrupt_picture_is_reported_and_the_rest_is_done(model, pictures, tmp_path, capfd):
    (pictures / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    out = tmp_path / "out.json"
    assert run("detect", model, pictures, "--json", out) == 1
    first, last = capfd.readouterr().err.splitlines()
    assert "bad.jpg" in first
    assert last == "drone-kd: 1 of 3 pictures failed"
    assert len(json.loads(out.read_text())) == 2


def test_a_failed_inference_is_not_an_empty_result(pictures, tmp_path, capfd):
    model, out = (
        write_fixed_model(tmp_path / "nan.onnx", np.full((1, 3, 6), np.nan)),
        tmp_path / "o",
    )
    assert run("detect", model, pictures, "--json", out) == 1
    assert json.loads(out.read_text()) == []
    assert "not finite" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "expected a command: detect or build or bench or selftest or lineage"),
        (["fly"], "fly"),
        (["detect"], "SOURCE"),
        (["detect", "{model}"], "is a model: name a picture"),
        (["detect", "no.onnx", "{pictures}"], "no.onnx: expected a model file"),
        (["detect", "{model}", "no.jpg"], "no.jpg: no such picture"),
        (["detect", "{model}", "{pictures}", "--confidence", "2"], "from 0 to 1, got '2'"),
        (["detect", "{model}", "{pictures}", "--max-detections", "0"], "from 1 on, got '0'"),
        (["detect", "{model}", "{pictures}", "--json", "no/folder/x.json"], "there is no folder"),
        (["bench", "{model}", "--frames", "many"], "from 1 on, got 'many'"),
        (["bench", "{model}", "--image", "no.jpg"], "no.jpg: No such file"),
    ],
)
def test_wrong_input_is_one_line_and_2(arguments, says, model, pictures, capfd):
    filled = [argument.format(model=model, pictures=pictures) for argument in arguments]
    assert run(*filled) == 2
    assert says in only_error_line(capfd)


def test_bench_reports_every_stage(model, capfd):
    assert run("bench", model, "--frames", "3") == 0
    lines = capfd.readouterr().out.splitlines()
    assert any("onnxruntime" in line for line in lines)
    assert any("1280x720" in line for line in lines)
    stages = {line.split()[0]: [float(value) for value in line.split()[1:]] for line in lines[-4:]}
    assert list(stages) == ["letterbox", "infer", "decode", "total"]
    assert all(0 < p50 <= p95 for p50, p95 in stages.values())


def test_interrupt_exits_130_without_a_traceback(model, pictures, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    # Nobody reads its output, so with this much of it the command cannot end on its own.
    for number in range(1000):
        (many / f"{'long_name_' * 20}{number}.png").symlink_to(pictures / "one.png")
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "drone_kd.cli", "detect", str(model), str(many)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        process.stdout.readline()  # it is at work
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert error == "drone-kd: interrupted\n"
