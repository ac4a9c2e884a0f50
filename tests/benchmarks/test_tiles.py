"""Data sets cut into tiles."""

import pytest

from benchmarks.tiles import split_paths
from drone_kd_training.data.dataset import load_data


@pytest.fixture
def data(tmp_path):
    for split, names in (("train", ("A1", "A2", "B1")), ("val", ("C1",))):
        (tmp_path / "images" / split).mkdir(parents=True)
        for name in names:
            (tmp_path / "images" / split / f"{name}.png").touch()
    path = tmp_path / "data.yaml"
    path.write_text("train: images/train\nval: images/val\nnames:\n  0: car\n")
    return load_data(path)


def names(splits):
    return {split: [path.stem for path in paths] for split, paths in splits.items()}


def test_held_out_flights_take_the_place_of_the_validation_split(data):
    assert names(split_paths(data, None)) == {"train": ["A1", "A2", "B1"], "val": ["C1"]}
    assert names(split_paths(data, "B")) == {"train": ["A1", "A2"], "val": ["B1"]}


@pytest.mark.parametrize("hold_out", ["", "C"])
def test_split_without_images_is_one_line(data, hold_out):
    with pytest.raises(SystemExit, match="expected some of 3 training images"):
        split_paths(data, hold_out)
