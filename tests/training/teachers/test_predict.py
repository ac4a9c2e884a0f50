# SPDX-License-Identifier: AGPL-3.0-or-later
import pytest

from drone_kd.cli import main
from drone_kd_training.data.dataset import load_data
from drone_kd_training.teachers.predict import predict
from drone_kd_training.teachers.teachers import open_teacher
from tiny_training import NAMES, SIZE, draw_set


def test_written_predictions_are_read_back(tiny_data, tiny_teacher, tmp_path):
    command = ["predict", str(tiny_teacher), "--data", str(tiny_data), "--imgsz", str(2 * SIZE)]
    assert main([*command, "--output", str(tmp_path / "predictions")]) == 0
    predictions = open_teacher(str(tmp_path / "predictions"), ("other", *NAMES))
    assert predictions.names == NAMES  # the teacher's own, whatever the data's are
    frames = {p.stem for p in (load_data(tiny_data).train).glob("*.*")}
    assert set(predictions.found) == frames
    boxes, scores = next(v for v in predictions.found.values() if len(v[0]))
    assert boxes.shape[1] == 4 and (boxes >= 0).all() and (boxes <= 1).all()
    assert scores.shape[1] == len(NAMES) and 0.05 <= scores.max() <= 1


def test_interrupted_run_leaves_nothing(tiny_data, tiny_teacher, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("drone_kd_training.teachers.predict.read_sample", stop)
    with pytest.raises(KeyboardInterrupt):
        predict(str(tiny_teacher), tiny_data, tmp_path / "predictions")
    assert list(tmp_path.iterdir()) == []


def test_image_named_like_the_list_of_classes_is_refused(tmp_path, tiny_teacher):
    data = draw_set(tmp_path / "data", train=2, val=1)
    image = data.parent / "images" / "train" / "000.png"
    image.rename(image.with_name("Classes.png"))
    with pytest.raises(ValueError, match="is taken by the list of classes"):
        predict(str(tiny_teacher), data, tmp_path / "predictions")
    assert not (tmp_path / "predictions").exists()


def test_existing_folder_and_unknown_split_are_refused(tiny_data, tiny_teacher, tmp_path):
    with pytest.raises(FileExistsError, match="exists already"):
        predict(str(tiny_teacher), tiny_data, tmp_path)
    with pytest.raises(ValueError, match="has no split 'night'"):
        predict(str(tiny_teacher), tiny_data, tmp_path / "a", split="night")
