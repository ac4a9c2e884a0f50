# SPDX-License-Identifier: AGPL-3.0-or-later
import io
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest

from drone_kd.core.detections import Detections
from drone_kd_training.data.dataset import DataError, image_paths
from drone_kd_training.teachers import prediction_cache
from drone_kd_training.teachers.prediction_cache import PredictionCache
from drone_kd_training.teachers.teaching_plan import Teacher
from tiny_training import NAMES, SIZE, draw_set
from touch_file import TouchFile

FOUND = Detections(
    np.array([[16, 8, 32, 24]], np.float32), np.array([0.75], np.float32), np.array([1])
)
# The same in [0, 1] of the image, as a row of the cache.
ROW = [16 / SIZE, 8 / SIZE, 32 / SIZE, 24 / SIZE, 0.75, 1]


@pytest.fixture
def images(tmp_path) -> list[Path]:
    return image_paths(draw_set(tmp_path / "data", train=3, val=0).parent / "images" / "train")


@pytest.fixture
def teacher(tmp_path) -> Teacher:
    (tmp_path / "teacher.pt").write_bytes(b"weights")
    classes = {name: name for name in NAMES}
    return Teacher("big", tmp_path / "teacher.pt", NAMES, ("fields",), classes, imgsz=SIZE)


@pytest.fixture
def detector(monkeypatch) -> Mock:
    """Stand-in for the teacher's detector, which counts its calls."""
    mock = Mock(return_value=FOUND)
    monkeypatch.setattr(PredictionCache, "_predict", lambda self, image: mock(image))
    prediction_cache.file_hash.cache_clear()
    return mock


def test_each_image_is_predicted_once(teacher, images, tmp_path, detector):
    cache = PredictionCache(teacher, tmp_path / "cache", NAMES)
    cache.compute([*images, images[0]])
    PredictionCache(teacher, tmp_path / "cache", NAMES).compute(images)
    assert detector.call_count == 3
    found = cache.of(images[2], (SIZE, SIZE))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [ROW])


def test_interrupted_computation_resumes(teacher, images, tmp_path, detector):
    detector.side_effect = [FOUND, KeyboardInterrupt]
    cache = PredictionCache(teacher, tmp_path / "cache", NAMES)
    with pytest.raises(KeyboardInterrupt):
        cache.compute(images)
    assert len(list(cache.folder.glob("*.npy"))) == 1
    detector.side_effect = None
    cache.compute(images)
    assert detector.call_count == 2 + 2
    assert sorted(p.suffix for p in cache.folder.iterdir()) == [".json", *[".npy"] * 3]


def test_changed_image_of_the_same_name_is_predicted_again(teacher, images, tmp_path, detector):
    PredictionCache(teacher, tmp_path / "cache", NAMES).compute(images)
    cv2.imwrite(str(images[0]), 255 - cv2.imread(str(images[0])))
    prediction_cache.file_hash.cache_clear()
    PredictionCache(teacher, tmp_path / "cache", NAMES).compute(images)
    assert detector.call_count == 3 + 1


@pytest.mark.parametrize(
    "change", [{"imgsz": 2 * SIZE}, {"tiles": "2x2"}, {"weights": "other.pt"}], ids=str
)
def test_other_settings_have_a_folder_of_their_own(
    teacher, images, tmp_path, detector, change, monkeypatch
):
    lines = Mock()
    monkeypatch.setattr(prediction_cache.LOGGER, "info", lines)
    PredictionCache(teacher, tmp_path / "cache", NAMES).compute(images)
    assert not lines.called
    if "weights" in change:
        change = {"weights": tmp_path / change["weights"]}
        change["weights"].write_bytes(b"other weights")
    PredictionCache(replace(teacher, **change), tmp_path / "cache", NAMES).compute(images)
    assert detector.call_count == 3 + 3
    assert "computed again" in lines.call_args.args[0]
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_given_predictions_need_no_detector(teacher, images, tmp_path, detector):
    folder = tmp_path / "predictions"
    folder.mkdir()
    (folder / "classes.txt").write_text("car\nperson\n")
    (folder / "000.txt").write_text("1 0.375 0.25 0.25 0.25 0.75\n")
    cache = PredictionCache(replace(teacher, weights=folder), tmp_path / "cache", NAMES)
    cache.compute(images)
    np.testing.assert_allclose(cache.of(images[0], (SIZE, SIZE)), [ROW])
    assert cache.of(images[1], (SIZE, SIZE)).shape == (0, 6)
    assert not detector.called and not (tmp_path / "cache").exists()


def npy(table) -> bytes:
    data = io.BytesIO()
    np.save(data, table)
    return data.getvalue()


def declaring(shape: str) -> bytes:
    """A table whose header declares another shape."""
    whole = npy(np.zeros((1, 6), np.float32))
    return whole.replace(b"(1, 6), }" + b" " * (len(shape) - 6), f"{shape}, }}".encode())


def headed(text: str) -> bytes:
    """A file of NumPy's format with any header."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a table",
        npy(np.zeros((1, 6))),
        npy(np.zeros((2, 5), np.float32)),
        npy(np.array([ROW[:4] + [np.nan, 1]], np.float32)),
        npy(np.array([[np.inf, *ROW[1:]]], np.float32)),
        npy(np.array([ROW[:5] + [2]], np.float32)),
        npy(np.array([ROW[:5] + [0.5]], np.float32)),
        npy(np.array([ROW[:4] + [1.5, 1]], np.float32)),
        npy(np.array(TouchFile(Path("touched")), dtype=object)),
        npy(np.zeros((50_000, 6), np.float32)),
        declaring("(1000000000, 6)"),
        declaring("(10000000000000, 6)"),
        declaring("(-1, 6)"),
        headed("("),
        headed("(" * 5000),
        headed("-" * 9000 + "1"),
        npy(np.zeros((3001, 6), np.float32)),
        b"PK\x03\x04 no archive",
        b"PK\x05\x06" + bytes(18),
    ],
    ids=lambda content: f"{len(content)} bytes",
)
def test_file_of_others_in_the_cache_is_refused_and_runs_no_code(
    teacher, images, tmp_path, detector, content, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    cache = PredictionCache(teacher, tmp_path / "cache", NAMES)
    cache.compute(images)
    file = cache._file(images[0])
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"expected .*; delete it") as error:
        cache.of(images[0], (SIZE, SIZE))
    assert str(error.value).isprintable() and not (tmp_path / "touched").exists()


def test_cache_behind_a_link_is_refused(teacher, images, tmp_path, detector):
    folder = PredictionCache(teacher, tmp_path / "cache", NAMES).folder
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="expected a folder, got a link"):
        PredictionCache(teacher, tmp_path / "cache", NAMES)


def test_unreadable_image_is_an_error(teacher, images, tmp_path, detector):
    images[1].write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"001\.png: expected a BMP, JPEG"):
        PredictionCache(teacher, tmp_path / "cache", NAMES).compute(images)
