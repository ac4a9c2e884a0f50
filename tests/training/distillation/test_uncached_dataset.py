"""A data set is read only, without its own cache files."""

import glob
import io
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from drone_kd_training.data.dataset import DataError, read_labels
from drone_kd_training.distillation.config import Config
from drone_kd_training.distillation.distill import distill
from drone_kd_training.distillation.uncached_dataset import (
    UncachedDataset,
    _check_image,
    _find,
    _verify,
)
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.teachers.predict import predict
from folder_content import folder_content
from tiny_training import NAMES, SIZE, draw_set
from touch_file import TouchFile


@pytest.fixture
def hostile_set(tmp_path) -> Path:
    """A data set whose caches create the file ``ran`` when they are unpickled."""
    data = draw_set(tmp_path / "set", train=4, val=2)
    for path in (data.parent / "labels").iterdir():
        buffer = io.BytesIO()
        np.save(buffer, np.array({"version": TouchFile(tmp_path / "ran")}, dtype=object))
        path.with_suffix(".cache").write_bytes(buffer.getvalue())
    return data


def open_set(data: Path, **options) -> UncachedDataset:
    description = {"names": dict(enumerate(NAMES))}
    return UncachedDataset(
        img_path=str(data.parent / "images" / "train"), imgsz=SIZE, data=description, **options
    )


def test_hostile_cache_does_run_where_ultralytics_reads_it(hostile_set, tmp_path):
    """Otherwise the tests below would prove nothing."""
    from ultralytics.data.dataset import YOLODataset

    names = dict(enumerate(NAMES))
    YOLODataset(str(hostile_set.parent / "images" / "train"), imgsz=SIZE, data={"names": names})
    assert (tmp_path / "ran").exists()


def test_link_in_a_circle_adds_no_image(tiny_data, tmp_path):
    data = tmp_path / "set" / "data.yaml"
    shutil.copytree(tiny_data.parent, data.parent)
    images = data.parent / "images" / "train"
    before = open_set(data).im_files
    (images / "again").symlink_to(images)
    assert open_set(data).im_files == before and len(before) == len(list(images.glob("*.*")))


def test_the_images_that_ultralytics_finds_are_found(tmp_path):
    """Also in a folder whose name has special characters, without hidden files."""
    top = tmp_path / "a[b]*c" / "images"
    for name in (
        "z.jpg",
        "b-1/a.JPG",
        "b/a.png",
        "b/.hidden.png",
        ".hidden/a.png",
        "b/c.png/noname",
    ):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()
    pattern = os.path.join(glob.escape(str(top)), "**", "*.*")  # noqa: PTH118
    found = sorted(_find(pattern))
    assert found == sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
    assert len(found) == 4  # a name with a dot may also be a folder's


def test_image_with_thousands_of_boxes_is_left_out_and_named(tiny_data, tmp_path, caplog):
    data = tmp_path / "set" / "data.yaml"
    shutil.copytree(tiny_data.parent, data.parent)
    count = len(open_set(data).labels)
    first = sorted((data.parent / "labels" / "train").iterdir())[0]
    first.write_text("".join(f"0 .5 .5 .1 .{n:05d}1\n" for n in range(3001)))
    with caplog.at_level("WARNING", logger="ultralytics"):
        assert len(open_set(data).labels) == count - 1
    assert "expected at most 3000 boxes in an image, got 3001" in caplog.text
    assert first.stem in caplog.text
    with pytest.raises(DataError, match="expected at most 3000 boxes"):
        read_labels(first, 2)


def trained(data: Path, teacher: Path | str, student: Path, output: Path) -> dict:
    """Train for an epoch; return the weights."""
    settings = {"epochs": 1, "imgsz": SIZE, "batch": 2, "terms": ("class",)}
    config = Config(data=str(data), teacher=str(teacher), student=str(student), **settings)
    distill(config, output)
    return load_model(str(output / "best.pt"))[0].state_dict()


@pytest.mark.slow  # trains
@pytest.mark.parametrize("teacher", ["none", "detector", "predictions"])
def test_read_only_data_with_caches_of_others_give_the_model_of_a_plain_copy(
    hostile_set, square_detector, tmp_path, teacher
):
    if teacher == "predictions":
        teacher = tmp_path / "predictions"
        predict(str(square_detector), str(hostile_set), teacher)
    elif teacher == "detector":
        teacher = square_detector
    image = hostile_set.parent / "images" / "train" / "000.jpg"
    add_jpeg(image)
    image.write_bytes(image.read_bytes() + b"written by a camera")
    plain = tmp_path / "plain"
    shutil.copytree(hostile_set.parent, plain, ignore=shutil.ignore_patterns("*.cache"))
    (hostile_set.parent / "labels" / "train.cache").write_bytes(b"of somebody else")
    np.save(image.with_suffix(".npy"), np.zeros((SIZE, SIZE, 3), np.uint8))
    protected = [*hostile_set.parent.rglob("*"), hostile_set.parent]
    for path in protected:  # root writes nevertheless: the content is compared, too
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = folder_content(hostile_set.parent)
    found = trained(hostile_set, teacher, square_detector, tmp_path / "run")
    assert not (tmp_path / "ran").exists()
    assert folder_content(hostile_set.parent) == before
    expected = trained(plain / "data.yaml", teacher, square_detector, tmp_path / "copy")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for path in reversed(protected):  # for pytest, which deletes it
        path.chmod(0o755)


def add_jpeg(path: Path) -> None:
    """Replace the .png of a labelled image by a .jpg of it."""
    cv2.imwrite(str(path), cv2.imread(str(path.with_suffix(".png"))))
    path.with_suffix(".png").unlink()


def test_jpeg_with_bytes_after_its_end_is_used_as_it_is(tmp_path, caplog):
    data = draw_set(tmp_path / "set", train=2, val=1)
    image = data.parent / "images" / "train" / "000.jpg"
    add_jpeg(image)
    pixels = cv2.imread(str(image))
    image.write_bytes(image.read_bytes() + bytes(100))
    before = folder_content(data.parent)
    np.testing.assert_array_equal(open_set(data).load_image(0)[0], pixels)
    assert folder_content(data.parent) == before


@pytest.mark.slow  # imports Ultralytics in another process
def test_ultralytics_would_write_a_jpeg_anew(tmp_path):
    """Otherwise the test above would prove nothing."""
    image = draw_set(tmp_path / "set", train=1, val=1).parent / "images" / "train" / "000.jpg"
    add_jpeg(image)
    image.write_bytes(image.read_bytes() + bytes(100))
    before = image.read_bytes()
    code = "import sys; from ultralytics.data.utils import check_image; check_image(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(image)], check=True)
    assert image.read_bytes() != before


def small_but_declared(width: int, height: int) -> bytes:
    """Return a PNG of one pixel whose header declares another size."""
    data = bytearray(cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize("kind", ["bomb", "truncated", "pipe", "folder", "long labels", "name"])
def test_unusable_image_is_left_out_and_named_in_one_line(kind, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("drone_kd_training.distillation.uncached_dataset.MAX_LABEL_BYTES", 1000)
    data = draw_set(tmp_path / "set", train=3, val=1)
    image = data.parent / "images" / "train" / "000.png"
    labels = data.parent / "labels" / "train" / "000.txt"
    if kind == "truncated":
        add_jpeg(image := image.with_suffix(".jpg"))
        image.write_bytes(image.read_bytes()[:-20])
    elif kind == "long labels":
        labels.write_text(labels.read_text() * 100)
    else:
        image.unlink()
    if kind == "bomb":
        image.write_bytes(small_but_declared(30_000, 30_000))
    elif kind == "pipe":
        os.mkfifo(image)
    elif kind == "folder":
        image.mkdir()
    elif kind == "name":
        image = image.with_name("\x1b[2J\n000.png")
        image.write_bytes(b"no image")
    with caplog.at_level("INFO", "ultralytics"):
        found = [Path(label["im_file"]).name for label in open_set(data).labels]
    assert found == ["001.png", "002.png"]
    shown = [line for line in caplog.text.splitlines() if "corrupt image or label" in line]
    assert len(shown) == 1 and "000." in shown[0] and "\x1b" not in shown[0]


def test_image_that_is_replaced_after_the_check_is_not_decoded(tmp_path, monkeypatch):
    data = draw_set(tmp_path / "set", train=2, val=1)
    found = open_set(data)
    image = data.parent / "images" / "train" / "000.png"
    image.write_bytes(small_but_declared(30_000, 30_000))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(FileNotFoundError, match="Image Not Found"):
        found.load_image(0)


@pytest.mark.parametrize("cache", [None, "ram"])
def test_cached_pixels_beside_an_image_are_not_read(tmp_path, cache):
    data = draw_set(tmp_path / "set", train=2, val=1)
    image = data.parent / "images" / "train" / "000.png"
    expected = open_set(data).load_image(0)[0]
    np.save(image.with_suffix(".npy"), np.zeros((SIZE, SIZE, 3), np.uint8))
    np.testing.assert_array_equal(open_set(data, cache=cache).load_image(0)[0], expected)


def test_labels_are_those_of_the_files(tmp_path):
    data = draw_set(tmp_path / "set", train=3, val=1)
    (data.parent / "labels" / "train" / "001.txt").unlink()
    (data.parent / "images" / "train" / "002.png").write_bytes(b"no image")
    labels = open_set(data, augment=False).labels
    assert [Path(label["im_file"]).name for label in labels] == ["000.png", "001.png"]
    assert [label["cls"].ravel().tolist() for label in labels] == [[0, 1], []]


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        ("labels/train/*.txt", ValueError, "no label file in"),
        ("images/train/*.png", RuntimeError, "no image can be read"),
    ],
)
def test_data_without_labels_or_images_is_refused(tmp_path, pattern, error, message):
    data = draw_set(tmp_path / "set", train=2, val=1)
    for path in data.parent.glob(pattern):
        path.unlink() if path.suffix == ".txt" else path.write_bytes(b"no image")
    with pytest.raises(error, match=message):
        open_set(data)


def test_cache_on_disk_is_refused():
    with pytest.raises(ValueError, match="cache=disk would write beside the images"):
        Config("data.yaml", "none", "model.yaml", overrides={"cache": "disk"})


def test_large_jpeg_is_checked_by_its_size_in_bytes_not_that_of_its_start(tmp_path):
    """Its first 65,536 bytes alone would have too many pixels each."""
    noise = np.random.default_rng(0).integers(0, 256, (250, 250, 3), dtype=np.uint8)
    image = np.tile(noise, (18, 20, 1))
    cv2.imwrite(str(tmp_path / "large.jpg"), image, (cv2.IMWRITE_JPEG_QUALITY, 1))
    assert image.size / 3 > 65_536 * 300 and (tmp_path / "large.jpg").stat().st_size > 80_000
    _check_image(tmp_path / "large.jpg")


def test_label_path_that_is_no_file_means_no_objects(tmp_path):
    """A pipe would be waited for."""
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((32, 32, 3), np.uint8))
    (tmp_path / "a.txt").mkdir()
    item = (str(tmp_path / "a.png"), str(tmp_path / "a.txt"), "", False, 1, 0, 0, False)
    *_, missing, found, empty, corrupt, message = _verify(item)
    assert (missing, found, empty, corrupt, message) == (1, 0, 0, 0, "")
