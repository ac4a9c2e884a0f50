# SPDX-License-Identifier: AGPL-3.0-or-later
import pytest

from drone_kd.cli import main
from drone_kd_training.data.dataset import load_data
from drone_kd_training.teachers.predict import predict
from drone_kd_training.teachers.teachers import open_teacher
from tiny_training import NAMES, SIZE


def test_what_a_teacher_finds_is_read_back_as_its_answers(tiny_data, tiny_teacher, tmp_path):
    command = ["predict", str(tiny_teacher), "--data", str(tiny_data), "--imgsz", str(2 * SIZE)]
    assert main([*command, "--output", str(tmp_path / "answers")]) == 0
    answers = open_teacher(str(tmp_path / "answers"), ("other", *NAMES))
    assert answers.names == NAMES  # the teacher's own, whatever the data's are
    frames = {p.stem for p in (load_data(tiny_data).train).glob("*.*")}
    assert set(answers.found) == frames
    boxes, scores = next(v for v in answers.found.values() if len(v[0]))
    assert boxes.shape[1] == 4 and (boxes >= 0).all() and (boxes <= 1).all()
    assert scores.shape[1] == len(NAMES) and 0.05 <= scores.max() <= 1


def test_nothing_is_left_of_an_interrupted_run(tiny_data, tiny_teacher, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("drone_kd_training.teachers.predict.read_sample", stop)
    with pytest.raises(KeyboardInterrupt):
        predict(str(tiny_teacher), tiny_data, tmp_path / "answers")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_and_an_unknown_split_are_refused(tiny_data, tiny_teacher, tmp_path):
    with pytest.raises(FileExistsError, match="exists already"):
        predict(str(tiny_teacher), tiny_data, tmp_path)
    with pytest.raises(ValueError, match="has no split 'night'"):
        predict(str(tiny_teacher), tiny_data, tmp_path / "a", split="night")
