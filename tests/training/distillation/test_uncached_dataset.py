"""A data set's own cache files are neither read nor written."""

import io
from pathlib import Path

import numpy as np
import pytest

from drone_kd_training.distillation.config import Config
from drone_kd_training.distillation.distill import distill
from drone_kd_training.distillation.uncached_dataset import UncachedDataset
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


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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


@pytest.mark.slow  # trains
@pytest.mark.parametrize("teacher", ["none", "detector"])
def test_training_leaves_a_hostile_data_set_as_it_is(
    hostile_set, square_detector, tmp_path, teacher
):
    before = content(hostile_set.parent)
    settings = {"epochs": 1, "imgsz": SIZE, "batch": 2, "terms": ("class",)}
    config = Config(
        data=str(hostile_set),
        teacher="none" if teacher == "none" else str(square_detector),
        student=str(square_detector),
        **settings,
    )
    assert distill(config, tmp_path / "run")["student"]["map50_95"] >= 0
    assert not (tmp_path / "ran").exists()
    assert content(hostile_set.parent) == before


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
