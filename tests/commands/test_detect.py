import json
import os
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest

from command_line import only_message, run
from http_video import mjpeg_server
from tiny_model import with_golden, write_bright_cell_model, write_fixed_model


@pytest.fixture
def two_classes(tmp_path):
    """A model that finds a car (score 0.5) and a person (score 0.4) in every image."""
    rows = [[8, 8, 24, 24, 0.5, 0], [40, 40, 56, 56, 0.4, 1]]
    return write_fixed_model(tmp_path / "two.onnx", np.array([rows]))


def found(model, source, tmp_path, *options):
    """Run detect with some options; return per frame the classes found, by name."""
    out = tmp_path / "found.json"
    assert run("detect", model, source, "--json", out, *options) == 0
    records = json.loads(out.read_text())
    return [sorted(box["class"] for box in record["detections"]) for record in records]


def test_json_has_image_class_score_and_box(model, images, tmp_path):
    out = tmp_path / "out.json"
    assert run("detect", model, images, "--json", out, "--confidence", "0.9") == 0

    empty, one = json.loads(out.read_text())
    assert empty == {"image": str(images / "empty.png"), "detections": []}
    assert one["image"] == str(images / "one.png")
    (box,) = one["detections"]
    assert set(box) == {"class", "score", "xyxy"}
    assert box["class"] == "car"
    assert box["score"] == pytest.approx(1.0, abs=1e-3)
    assert box["xyxy"] == pytest.approx([96, 32, 128, 64], abs=1e-3)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_model_that_does_not_reproduce_its_golden_images_is_refused(
    model, images, tmp_path, capfd
):
    assert run("detect", with_golden(model), images / "one.png") == 0
    other = write_bright_cell_model(tmp_path / "other.onnx", cell=16)
    capfd.readouterr()
    assert run("detect", with_golden(other, rows_of=model), images / "one.png") == 2
    assert "does not reproduce the golden images" in only_message(capfd)


def test_options_may_stand_between_model_and_source(model, images, tmp_path):
    save = tmp_path / "drawn"
    assert run("detect", model, "--save", save, "--confidence", "0.9", images) == 0
    drawn, original = (cv2.imread(str(folder / "one.png")) for folder in (save, images))
    assert (drawn[31, 95:129] != original[31, 95:129]).any(axis=-1).all()


def test_source_is_never_overwritten(model, images, capfd):
    before = (images / "one.png").read_bytes()
    assert run("detect", model, images / "one.png", "--save", images) == 2
    assert "overwrite" in only_message(capfd)
    assert (images / "one.png").read_bytes() == before


def test_video_frames_are_numbered(model, tmp_path):
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


def test_max_detections(model, tmp_path):
    white = tmp_path / "white.png"
    cv2.imwrite(str(white), np.full((64, 64, 3), 255, np.uint8))
    assert found(model, white, tmp_path, "--max-detections", "3") == [["car"] * 3]


def test_frames_limits_the_number_of_images(two_classes, images, tmp_path):
    assert len(found(two_classes, images, tmp_path)) == 2
    assert len(found(two_classes, images, tmp_path, "--frames", "1")) == 1


@pytest.mark.parametrize(
    ("options", "classes"),
    [
        ((), ["car", "person"]),
        (("--confidence", "0.45"), ["car"]),
        (("--confidence", "car=0.6"), ["person"]),
        (("--confidence", "0.45,person=0.3"), ["car", "person"]),
        (("--confidence", "car=0.6,person=0.45"), []),
        (("--classes", "person"), ["person"]),
        (("--classes", "person,car"), ["car", "person"]),
    ],
)
def test_confidence_and_classes(options, classes, two_classes, images, tmp_path):
    assert found(two_classes, images / "one.png", tmp_path, *options) == [classes]


def test_iou_decides_what_is_one_object(tmp_path, images):
    # The two boxes have an IoU of 16 * 12 / (16 * 20) = 0.6.
    rows = [[8, 8, 24, 24, 0.9, 0], [8, 12, 24, 28, 0.8, 0]]
    model = write_fixed_model(tmp_path / "overlap.onnx", np.array([rows]))
    assert found(model, images / "one.png", tmp_path, "--iou", "0.7") == [["car", "car"]]
    assert found(model, images / "one.png", tmp_path, "--iou", "0.5") == [["car"]]


def test_tiling_finds_what_the_whole_image_loses(model, tmp_path):
    # 8 x 8 px in 512 x 512: a 64th of a cell of the whole image, a whole cell of a tile.
    image = np.zeros((512, 512, 3), np.uint8)
    image[64:72, 64:72] = 255
    path = tmp_path / "large.png"
    cv2.imwrite(str(path), image)
    assert found(model, path, tmp_path) == [[]]
    assert "car" in found(model, path, tmp_path, "--tiling", "auto")[0]


def test_default_model_is_used_when_none_is_named(model, images, monkeypatch, capfd):
    monkeypatch.setattr("drone_kd.commands.detect.default_model_path", lambda: model)
    assert run("detect", images, "--confidence", "0.9") == 0
    assert "one.png: 1 car" in capfd.readouterr().out


def test_corrupt_image_is_reported_and_the_rest_is_done(model, images, tmp_path, capfd):
    (images / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    out = tmp_path / "out.json"
    assert run("detect", model, images, "--json", out) == 1
    lines = capfd.readouterr().err.splitlines()
    first, last = [line for line in lines if line.startswith("drone-kd: ")]
    assert "bad.jpg" in first
    assert last == "drone-kd: 1 of 3 images failed"
    assert len(json.loads(out.read_text())) == 2


def test_name_of_an_image_cannot_steer_the_terminal(model, images, capfd):
    (images / "one.png").rename(images / "one\x1b[2J.png")
    assert run("detect", model, images) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 2 and all(line.isprintable() for line in lines)
    assert r"one\x1b[2J.png: 1 car" in lines[1]


def test_failed_inference_is_no_empty_result(images, tmp_path, capfd):
    model = write_fixed_model(tmp_path / "nan.onnx", np.full((1, 3, 6), np.nan))
    out = tmp_path / "out.json"
    assert run("detect", model, images, "--json", out) == 1
    assert json.loads(out.read_text()) == []
    assert "not finite" in capfd.readouterr().err


def test_live_stream_stops_after_frames(model, tmp_path):
    white = np.full((64, 64, 3), 255, np.uint8)
    with mjpeg_server([white], endless=True) as url:
        assert found(model, url, tmp_path, "--frames", "3") == [["car"] * 64] * 3


def test_end_of_a_live_stream_fails_and_keeps_what_was_found(model, tmp_path, capfd):
    out = tmp_path / "out.json"
    with mjpeg_server([np.zeros((64, 64, 3), np.uint8)] * 3) as url:
        assert run("detect", model, url, "--json", out) == 1
    assert "the stream ended after" in only_message(capfd)
    assert json.loads(out.read_text())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["detect"], "SOURCE"),
        (["detect", "{model}"], "is a model: name an image"),
        (["detect", "no.onnx", "{images}"], "no.onnx: expected a model file"),
        (["detect", "{model}", "no.jpg"], "no.jpg: no such image"),
        (["detect", "{model}", "{images}", "--confidence", "2"], "from 0 to 1, got '2'"),
        (["detect", "{model}", "{images}", "--confidence", "0.1,0.2"], "one threshold for all"),
        (["detect", "{model}", "{images}", "--confidence", "car=x"], "NAME=THRESHOLD"),
        (["detect", "{model}", "{images}", "--confidence", "boat=0.1"], "no class 'boat'"),
        (["detect", "{model}", "{images}", "--classes", "boat"], "no class 'boat'"),
        (["detect", "{model}", "{images}", "--iou", "-1"], "from 0 to 1, got '-1'"),
        (["detect", "{model}", "{images}", "--tiling", "3"], "ROWSxCOLUMNS"),
        (["detect", "{model}", "{images}", "--max-detections", "0"], "≥ 1, got '0'"),
        (["detect", "{model}", "{images}", "--json", "no/folder/x.json"], "there is no folder"),
        (["detect", "{model}", "{images}", "--save", "{model}"], "expected a folder, got a file"),
        (["detect", "{model}", "http://127.0.0.1:9/camera"], "cannot be opened"),
        (["detect", "{model}", "/dev/video999"], "no such camera"),
    ],
)
def test_wrong_input_is_one_line_and_2(arguments, says, model, images, capfd):
    filled = [argument.format(model=model, images=images) for argument in arguments]
    assert run(*filled) == 2
    assert says in only_message(capfd)


def test_interrupt_exits_130_without_a_traceback(model, images, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    # Nobody reads its output, so with this much of it the command cannot end on its own.
    for number in range(1000):
        (many / f"{'long_name_' * 20}{number}.png").symlink_to(images / "one.png")
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "drone_kd.cli", "detect", str(model), str(many)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        process.stdout.readline()  # it is at work
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert error.splitlines()[-1] == "drone-kd: interrupted" and "Traceback" not in error


def test_names_of_files_do_not_reach_the_terminal_as_they_are(model, tmp_path, capfd):
    folder = tmp_path / "images"
    folder.mkdir()
    names = [b"\x1b]0;evil\x07.png", b"a\nb.png", b"\xff\xfe.png", b"bad\x1b[2J\r.png"]
    for number, name in enumerate(names):
        content = cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
        (folder / os.fsdecode(name)).write_bytes(content if number < 3 else b"no image")
    out = tmp_path / "out.json"
    assert run("detect", model, folder, "--json", out) == 1
    printed = capfd.readouterr()
    lines = [*printed.out.splitlines(), *printed.err.splitlines()]
    assert len(lines) == 5 and all(line.isprintable() for line in lines), lines
    read = {record["image"] for record in json.loads(out.read_text())}
    assert read == {str(folder / os.fsdecode(name)) for name in names[:3]}


def test_saved_image_replaces_a_link(model, images, tmp_path):
    save = tmp_path / "drawn"
    save.mkdir()
    other = tmp_path / "other.png"
    other.write_bytes(b"kept")
    (save / "one.png").symlink_to(other)
    (save / "empty.png").hardlink_to(images / "empty.png")
    before = (images / "empty.png").read_bytes()
    assert run("detect", model, images, "--save", save) == 0
    assert other.read_bytes() == b"kept" and not (save / "one.png").is_symlink()
    assert (images / "empty.png").read_bytes() == before
    assert cv2.imread(str(save / "one.png")) is not None


@pytest.mark.parametrize("target", ["model", "image", "folder"])
def test_json_overwrites_no_input(model, images, capfd, target):
    path = model if target == "model" else images / "one.png"
    source = images if target == "folder" else images / "one.png"
    before = path.read_bytes()
    assert run("detect", model, source, "--json", path) == 2
    assert "would overwrite an input" in only_message(capfd)
    assert path.read_bytes() == before


def test_image_that_cannot_be_saved_is_one_line(model, tmp_path, capfd):
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((1, 20_000, 3), np.uint8))
    (tmp_path / "wide.png").rename(tmp_path / "wide.webp")  # at most 16,383 px
    assert run("detect", model, tmp_path / "wide.webp", "--save", tmp_path / "drawn") == 1
    assert "wide.webp: cannot be written" in only_message(capfd)


def test_larger_images_need_the_option_that_the_refusal_names(model, tmp_path, capfd):
    path = tmp_path / "large.png"
    cv2.imwrite(str(path), np.zeros((1000, 1100, 3), np.uint8))
    assert run("detect", model, path, "--max-megapixels", "1") == 1
    error = capfd.readouterr().err
    assert "less than 1 megapixels, got 1100x1000" in error
    assert "; --max-megapixels allows more" in error
    assert run("detect", model, path, "--max-megapixels", "1.2") == 0


def test_limit_of_opencv_is_named_where_it_is_lower(model, tmp_path, capfd):
    path = tmp_path / "large.bmp"
    header = b"BM" + bytes(12) + (40).to_bytes(4, "little") + (20_000).to_bytes(4, "little") * 2
    path.write_bytes(header + bytes(1000))
    assert run("detect", model, path, "--max-megapixels", "900") == 1
    assert "less than 256 megapixels (OPENCV_IO_MAX_IMAGE_PIXELS)" in capfd.readouterr().err
