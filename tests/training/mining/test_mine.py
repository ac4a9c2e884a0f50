# SPDX-License-Identifier: AGPL-3.0-or-later
import csv
import errno
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from drone_kd.cli import main
from drone_kd_training.data.dataset import image_paths, load_data, read_sample
from drone_kd_training.mining import mine as mine_module
from drone_kd_training.mining import stages
from drone_kd_training.teachers.soft_labels import IGNORE_BAND
from drone_kd_training.teachers.teachers import open_teacher
from mining_flights import NAMES, SECOND, flight
from recorded import content, cut, image, jpeg, scene, storage_file, write_bag
from tiny_model import tiny_spec, write_fixed_model


def mine(output, *flights, teacher, student, frames=12, extra=()):
    command = ["mine", *map(str, flights), "--teacher", str(teacher), "--student", str(student)]
    return main([*command, "--output", str(output), "--frames", str(frames), *extra])


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "mined.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_flight_becomes_a_data_set(bag, teacher, student, tmp_path, capsys):
    output = tmp_path / "mined"
    assert mine(output, bag, teacher=teacher, student=student) == 0
    assert "60 frames: 12 selected, 3 held out" in capsys.readouterr().out
    data = load_data(output / "data.yaml")
    assert data.names == NAMES  # the student's, in which the teacher's answers are
    rows = table(output)
    answers = open_teacher(str(output / "answers"), ())
    assert answers.names == NAMES
    sure = 0
    for split in ("train", "val"):
        own = [row for row in rows if row["split"] == split]
        paths = image_paths(getattr(data, split))
        assert sorted(row["name"] for row in own) == sorted(p.stem for p in paths)
        for path in paths:
            labels = read_sample(path, len(NAMES))
            boxes, scores = answers.found[path.stem]
            assert set(labels.class_ids.tolist()) <= {1}
            assert len(labels.xyxy) == (scores.max(axis=1) > IGNORE_BAND[1]).sum()
            sure += len(labels.xyxy)
            for box in labels.xyxy.round().astype(int):  # they are where it is bright
                assert labels.image[box[1] : box[3], box[0] : box[2]].mean() > 150
    assert sure == sum(int(row["sure"]) for row in rows) > 12
    by_time = {split: {int(float(r["stamp_s"])) // 6 for r in rows if r["split"] == split}
               for split in ("train", "val")}  # fmt: skip
    assert not by_time["train"] & by_time["val"]
    assert {row["reason"] for row in rows} == {
        "disagreement",
        "uncertainty",
        "novelty",
        "random",
    }
    assert all(row["flight"] == str(bag) and row["topic"] == "/camera/image" for row in rows)
    assert cv2.imread(str(output / "contact-sheet.jpg")).shape[1] == 6 * 320
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_from_which_score_on_the_teacher_labels(bag, teacher, student, tmp_path, capsys):
    """The same answers, and more of them are labels."""
    models = {"teacher": teacher, "student": student}
    assert mine(tmp_path / "usual", bag, **models) == 0
    found = open_teacher(str(tmp_path / "usual/answers"), ()).found
    best = np.unique(np.concatenate([scores.max(axis=1) for _, scores in found.values()]))
    edge = float(best[best < IGNORE_BAND[1]][-2:].mean())
    assert mine(tmp_path / "more", bag, **models, extra=["--sure", str(edge)]) == 0
    rows = table(tmp_path / "more")
    for row in rows:
        scores = found[row["name"]][1].max(axis=1, initial=0)
        assert int(row["sure"]) == (scores > edge).sum()
        labels = tmp_path / "more/labels" / row["split"] / f"{row['name']}.txt"
        assert len(labels.read_text().splitlines()) == (scores > edge).sum()
    assert sum(int(r["sure"]) for r in rows) > sum(
        int(r["sure"]) for r in table(tmp_path / "usual")
    )
    assert mine(tmp_path / "none", bag, **models, extra=["--sure", "1.5"]) == 2
    assert "--sure: expected a score between 0 and 1, got 1.5" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["look", "label", "finish"])
def test_what_is_killed_goes_on_where_it_was(bag, teacher, student, tmp_path, stage, monkeypatch):
    assert mine(tmp_path / "whole", bag, teacher=teacher, student=student) == 0
    calls = {"look": 0, "label": 0, "finish": 0}
    where = {"look": stages, "label": stages, "finish": mine_module.mined_dataset}

    def counted(name):
        own = getattr(where[name], name)

        def call(*arguments):
            calls[name] += 1
            if name == stage and calls[name] == {"look": 5, "label": 3, "finish": 1}[name]:
                raise KeyboardInterrupt
            return own(*arguments)

        return call

    with monkeypatch.context() as patch:
        for name in calls:
            patch.setattr(where[name], name, counted(name))
        assert mine(tmp_path / "mined", bag, teacher=teacher, student=student) == 130
    assert not (tmp_path / "mined").exists()
    with monkeypatch.context() as patch:
        for name in calls:
            patch.setattr(where[name], name, counted(name))
        calls = {"look": 10, "label": 10, "finish": 10}
        assert mine(tmp_path / "mined", bag, teacher=teacher, student=student) == 0
        assert calls["look"] - 10 == (6 if stage == "look" else 0)  # of ten segments
    assert content(tmp_path / "mined") == content(tmp_path / "whole")


def test_interrupted_work_of_another_command_is_not_mixed(
    bag, teacher, student, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        patch.setattr(
            mine_module.mined_dataset,
            "finish",
            lambda *_: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        assert mine(tmp_path / "mined", bag, teacher=teacher, student=student) == 130
    assert mine(tmp_path / "mined", bag, teacher=teacher, student=student, frames=9) == 2
    assert "other frames: delete it" in capsys.readouterr().err
    (tmp_path / "there").mkdir()
    assert mine(tmp_path / "there", bag, teacher=teacher, student=student) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_nothing_is_lost(
    bag, teacher, student, tmp_path, monkeypatch, capsys
):
    written = []

    def full(path, data):
        written.append(path)
        if len(written) > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        Path(path).write_bytes(data)

    with monkeypatch.context() as patch:
        patch.setattr(mine_module, "write_whole", full)
        assert mine(tmp_path / "mined", bag, teacher=teacher, student=student) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "No space left on device" in error and "goes on" in error
    assert not (tmp_path / "mined").exists()
    assert mine(tmp_path / "mined", bag, teacher=teacher, student=student) == 0


def test_a_broken_bag_gives_what_is_left_of_it(teacher, student, tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 90, (200, 300, 3), dtype=np.uint8)
    bag = write_bag(
        tmp_path / "bag",
        [("/a", k * SECOND, image(np.roll(noise, k, 0), k * SECOND)) for k in range(60)],
    )
    cut(storage_file(bag), 0.6)
    assert mine(tmp_path / "mined", bag, teacher=teacher, student=student, frames=4) == 0
    said = capsys.readouterr().out
    assert "as far as it goes" in said and "breaks off" in said
    assert (tmp_path / "mined" / "mined.csv").is_file()


def test_unusable_frames_are_counted_and_the_others_used(teacher, student, tmp_path, capsys):
    frames = [
        ("/a", k * SECOND, image(scene(k // 6, k), k * SECOND, "bgr8" if k % 2 else "rgb48"))
        for k in range(40)
    ]
    bag = write_bag(tmp_path / "bag", frames)
    assert mine(tmp_path / "mined", bag, teacher=teacher, student=student, frames=4) == 0
    said = capsys.readouterr().out
    assert "'rgb48' (20 times)" in said and "20 frames: " in said
    odd = write_bag(tmp_path / "odd", frames[::2])
    assert mine(tmp_path / "no", odd, teacher=teacher, student=student) == 2
    assert "no frame that can be read in any flight" in capsys.readouterr().err


def test_two_cameras_of_different_sizes(teacher, student, tmp_path):
    frames = []
    for k in range(40):
        frames.append(("/left", k * SECOND, image(scene(k // 4, k), k * SECOND)))
        frames.append(("/right", k * SECOND, jpeg(scene(50 + k // 4, k, 200, 150), k * SECOND)))
    bag = write_bag(tmp_path / "bag", frames)
    assert mine(tmp_path / "mined", bag, teacher=teacher, student=student, frames=20) == 0
    rows = table(tmp_path / "mined")
    assert {row["topic"] for row in rows} == {"/left", "/right"}
    for row in rows:
        name = tmp_path / "mined" / "images" / row["split"] / f"{row['name']}.jpg"
        assert cv2.imread(str(name)).shape[:2] == ((96, 128), (150, 200))[row["topic"] == "/right"]


def test_a_teacher_that_sees_nothing_is_said(bag, student, tmp_path, capsys):
    blind = write_fixed_model(
        tmp_path / "blind.onnx", np.zeros((1, 1, 6), np.float32), tiny_spec(classes=("car",))
    )
    assert mine(tmp_path / "mined", bag, teacher=blind, student=student) == 0
    assert "sure of nothing" in capsys.readouterr().out


def test_flights_of_the_same_name_do_not_overwrite_each_other(teacher, student, tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = flight(tmp_path / "a" / "flight")
    two = flight(tmp_path / "b" / "flight", seconds=50)
    shutil.copytree(one, tmp_path / "again")
    flights = [one, two, tmp_path / "again", one]
    assert mine(tmp_path / "mined", *flights, teacher=teacher, student=student, frames=20) == 0
    assert capsys.readouterr().out.count("the same flight as") == 2
    rows = table(tmp_path / "mined")
    assert {row["flight"] for row in rows} == {str(one), str(two)}
    assert len({row["name"] for row in rows}) == len(rows)


def test_what_cannot_work_is_one_line(bag, teacher, student, tmp_path, capsys):
    answers = tmp_path / "answers"
    answers.mkdir()
    for bad, message in (
        ({"teacher": answers}, "expected a model"),
        ({"frames": 0}, "expected at least 1"),
        ({"extra": ("--topic", "/no")}, "there are some on /camera/image"),
    ):
        options = {"teacher": teacher, "student": student, **bad}
        assert mine(tmp_path / "mined", bag, **options) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error
    assert not list(tmp_path.glob("*mined*"))


def test_checkpoints_may_teach_and_fly(bag, tiny_teacher, student, tmp_path):
    assert mine(tmp_path / "mined", bag, teacher=tiny_teacher, student=student, frames=2) == 0
    names = (tmp_path / "mined" / "answers" / "classes.txt").read_text().split()
    assert tuple(names) == NAMES
