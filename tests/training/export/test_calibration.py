from pathlib import Path

import cv2
import numpy as np
import pytest

from drone_kd_training.data.dataset import DataError, image_paths, load_data
from drone_kd_training.export.calibration import calibrate, names_sha256, spread
from folder_content import folder_content
from tiny_training import draw_set


def test_frames_are_spread_evenly():
    paths = [Path(f"{i}.jpg") for i in range(10)]
    assert [p.stem for p in spread(paths, 3)] == ["0", "3", "6"]
    assert spread(paths, 20) == paths
    assert names_sha256(paths) != names_sha256(paths[::-1])


def test_calibration_finds_the_largest_input(tiny_data, half):
    _, graph, spec = half
    found = calibrate(graph, spec, image_paths(load_data(tiny_data).train)[:2])
    assert found["model.model.0.conv.weight"] == pytest.approx(240 / 255, abs=0.01)


def test_frames_of_another_size_and_unreadable_ones(half, tmp_path):
    _, graph, spec = half
    cv2.imwrite(str(tmp_path / "large.png"), np.full((300, 500, 3), 200, np.uint8))
    (tmp_path / "broken.png").write_bytes(b"not an image")
    both = calibrate(graph, spec, [tmp_path / "broken.png", tmp_path / "large.png"])
    assert both["model.model.0.conv.weight"] == pytest.approx(200 / 255, abs=1e-3)
    with pytest.raises(DataError, match="none of 1 images is readable"):
        calibrate(graph, spec, [tmp_path / "broken.png"])


def test_calibration_leaves_the_data_set_as_it_was(half, tmp_path):
    _, graph, spec = half
    data = draw_set(tmp_path / "set", train=2, val=1)
    before = folder_content(data.parent)
    calibrate(graph, spec, image_paths(load_data(data).train))
    assert folder_content(data.parent) == before
