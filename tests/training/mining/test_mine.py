# SPDX-License-Identifier: AGPL-3.0-or-later
import contextlib
import csv
import errno
import io
import json
import os
import re
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from unittest import mock
from unittest.mock import Mock

import cv2
import numpy as np
import pytest

from drone_kd.cli import main
from drone_kd_training.data.dataset import image_paths, load_data, read_sample
from drone_kd_training.mining import flight_ledger, mined_dataset, stages
from drone_kd_training.mining.flight_ledger import JUDGE, assign_sides
from drone_kd_training.teachers.soft_labels import IGNORE_BAND
from drone_kd_training.teachers.teachers import open_teacher
from folder_contents import contents
from mining_flights import NAMES, SECOND, flight
from recorded import content, cut, image, jpeg, scene, storage_file, write_bag
from tiny_model import tiny_spec, write_fixed_model


def mine(output, *flights, teacher, student, frames=12, extra=()):
    command = ["mine", *map(str, flights), "--teacher", str(teacher), "--student", str(student)]
    return main([*command, "--output", str(output), "--frames", str(frames), *extra])


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "mined.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def mined(bag, teacher, student, tmp_path_factory) -> Path:
    """The data set of one flight, by the command; read only."""
    output = tmp_path_factory.mktemp("whole") / "mined"
    before = contents(bag)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert mine(output, bag, teacher=teacher, student=student) == 0
    assert contents(bag) == before
    assert re.search(r"60 frames.* 12 .* 3 held out", printed.getvalue())
    assert [p.name for p in output.parent.iterdir()] == ["mined"]  # no work folder is left
    return output


@pytest.mark.slow
def test_frames_labels_and_predictions_of_a_flight(mined, bag):
    data = load_data(mined / "data.yaml")
    assert data.names == NAMES  # the student's; the teacher's predictions are translated
    rows = table(mined)
    predictions = open_teacher(str(mined / "predictions"), ())
    assert predictions.names == NAMES
    confident = 0
    for split in ("train", "val"):
        own = [row for row in rows if row["split"] == split]
        paths = image_paths(getattr(data, split))
        assert sorted(row["name"] for row in own) == sorted(p.stem for p in paths)
        for path in paths:
            labels = read_sample(path, len(NAMES))
            _, scores = predictions.found[path.stem]
            assert set(labels.class_ids.tolist()) <= {1}
            assert len(labels.xyxy) == (scores.max(axis=1) > IGNORE_BAND[1]).sum()
            confident += len(labels.xyxy)
            for box in labels.xyxy.round().astype(int):  # on bright squares
                assert labels.image[box[1] : box[3], box[0] : box[2]].mean() > 150
    assert confident == sum(int(row["labels"]) for row in rows) > 12
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
    assert cv2.imread(str(mined / "contact-sheet.jpg")).shape[1] == 6 * 320


@pytest.mark.slow
def test_lower_threshold_makes_more_pseudo_labels(mined, bag, teacher, student, tmp_path, capsys):
    models = {"teacher": teacher, "student": student}
    found = open_teacher(str(mined / "predictions"), ()).found
    best = np.unique(np.concatenate([scores.max(axis=1) for _, scores in found.values()]))
    edge = float(best[best < IGNORE_BAND[1]][-2:].mean())
    assert mine(tmp_path / "more", bag, **models, extra=["--pseudo-threshold", str(edge)]) == 0
    rows = table(tmp_path / "more")
    for row in rows:
        scores = found[row["name"]][1].max(axis=1, initial=0)
        assert int(row["labels"]) == (scores > edge).sum()
        labels = tmp_path / "more/labels" / row["split"] / f"{row['name']}.txt"
        assert len(labels.read_text().splitlines()) == (scores > edge).sum()
    assert sum(int(r["labels"]) for r in rows) > sum(int(r["labels"]) for r in table(mined))
    assert mine(tmp_path / "none", bag, **models, extra=["--pseudo-threshold", "1.5"]) == 2
    assert (
        "--pseudo-threshold: expected a score between 0 and 1, got 1.5" in capsys.readouterr().err
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "calls_before"), [("score", 5), ("label", 3), ("finish", 1)], ids=str
)
def test_interrupted_run_resumes_with_identical_output(
    mined, bag, teacher, student, tmp_path, stage, calls_before, monkeypatch
):
    places = {"score": stages, "label": stages, "finish": mined_dataset}
    calls = Counter()

    def counted(name, function):
        def call(*arguments):
            calls[name] += 1
            if name == stage and calls[name] == calls_before:
                raise KeyboardInterrupt
            return function(*arguments)

        return call

    for name, place in places.items():
        monkeypatch.setattr(place, name, counted(name, getattr(place, name)))
    assert mine(tmp_path / "mined", bag, teacher=teacher, student=student) == 130
    assert not (tmp_path / "mined").exists()
    scored = calls["score"]
    assert mine(tmp_path / "mined", bag, teacher=teacher, student=student) == 0
    # Ten segments of one batch each: the interrupted one and those behind it are scored again.
    assert calls["score"] - scored == (6 if stage == "score" else 0)
    assert content(tmp_path / "mined") == content(mined)


def test_interrupted_work_of_another_command_is_refused(
    bag, teacher, student, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        patch.setattr(mined_dataset, "finish", Mock(side_effect=KeyboardInterrupt))
        assert mine(tmp_path / "mined", bag, teacher=teacher, student=student) == 130
    assert mine(tmp_path / "mined", bag, teacher=teacher, student=student, frames=9) == 2
    assert "other frames: delete it" in capsys.readouterr().err
    (tmp_path / "there").mkdir()
    assert mine(tmp_path / "there", bag, teacher=teacher, student=student) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.slow
def test_full_disk_is_one_line_and_finished_work_is_kept(
    mined, bag, teacher, student, tmp_path, monkeypatch, capsys
):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        # A file takes two calls, for itself and for its folder.
        patch.setattr(os, "fsync", Mock(side_effect=[None] * 12 + [full]))
        assert mine(tmp_path / "mined", bag, teacher=teacher, student=student) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "No space left on device; finished work is kept" in error
    assert not (tmp_path / "mined").exists()
    assert len(list((tmp_path / ".mined.mining" / "shards").glob("*.json"))) == 5
    assert mine(tmp_path / "mined", bag, teacher=teacher, student=student) == 0
    assert content(tmp_path / "mined") == content(mined)


def test_truncated_bag_is_mined_up_to_the_cut(teacher, student, tmp_path, capsys):
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


def test_unreadable_frames_are_counted_and_the_others_used(teacher, student, tmp_path, capsys):
    frames = [
        ("/a", k * SECOND, image(scene(k // 6, k), k * SECOND, "bgr8" if k % 2 else "rgb48"))
        for k in range(40)
    ]
    bag = write_bag(tmp_path / "bag", frames)
    assert mine(tmp_path / "mined", bag, teacher=teacher, student=student, frames=4) == 0
    said = capsys.readouterr().out
    assert "'rgb48' (20 times)" in said and "20 frames" in said
    odd = write_bag(tmp_path / "odd", frames[::2])
    assert mine(tmp_path / "no", odd, teacher=teacher, student=student) == 2
    assert "expected a readable frame in some flight, found none" in capsys.readouterr().err


def test_two_cameras_of_different_sizes(teacher, student, tmp_path):
    frames = []
    for k in range(20):
        frames.append(("/left", k * SECOND, image(scene(k // 4, k), k * SECOND)))
        frames.append(("/right", k * SECOND, jpeg(scene(50 + k // 4, k, 200, 150), k * SECOND)))
    bag = write_bag(tmp_path / "bag", frames)
    assert mine(tmp_path / "mined", bag, teacher=teacher, student=student, frames=10) == 0
    rows = table(tmp_path / "mined")
    assert {row["topic"] for row in rows} == {"/left", "/right"}
    for row in rows:
        name = tmp_path / "mined" / "images" / row["split"] / f"{row['name']}.jpg"
        assert cv2.imread(str(name)).shape[:2] == ((96, 128), (150, 200))[row["topic"] == "/right"]


def test_teacher_without_confident_predictions_is_a_warning(bag, student, tmp_path, capsys):
    blind = write_fixed_model(
        tmp_path / "blind.onnx", np.zeros((1, 1, 6), np.float32), tiny_spec(classes=("car",))
    )
    assert mine(tmp_path / "mined", bag, teacher=blind, student=student) == 0
    assert "no chosen frame has a confident prediction" in capsys.readouterr().out


@pytest.mark.slow
def test_flights_of_the_same_name_are_kept_apart(teacher, student, tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = flight(tmp_path / "a" / "flight", seconds=20)
    two = flight(tmp_path / "b" / "flight", seconds=24)
    shutil.copytree(one, tmp_path / "again")
    flights = [one, two, tmp_path / "again", one]
    assert mine(tmp_path / "mined", *flights, teacher=teacher, student=student, frames=20) == 0
    assert capsys.readouterr().out.count("the same flight as") == 2
    rows = table(tmp_path / "mined")
    assert {row["flight"] for row in rows} == {str(one), str(two)}
    assert len({row["name"] for row in rows}) == len(rows)


def test_unusable_input_is_one_line(bag, teacher, student, tmp_path, capsys):
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    for bad, message in (
        ({"teacher": predictions}, "expected a model"),
        ({"frames": 0}, "expected at least 1"),
        ({"extra": ("--topic", "/no")}, "there are some on /camera/image"),
    ):
        options = {"teacher": teacher, "student": student, **bad}
        assert mine(tmp_path / "mined", bag, **options) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error
    assert not list(tmp_path.glob("*mined*"))


def test_checkpoint_as_teacher(tiny_teacher, student, tmp_path):
    bag = flight(tmp_path / "bag", seconds=20)
    assert mine(tmp_path / "mined", bag, teacher=tiny_teacher, student=student, frames=2) == 0
    names = (tmp_path / "mined" / "predictions" / "classes.txt").read_text().split()
    assert tuple(names) == NAMES


@pytest.fixture
def images(tmp_path) -> Path:
    """A flight of 12 images."""
    folder = tmp_path / "flight"
    folder.mkdir()
    for k in range(12):
        cv2.imwrite(str(folder / f"{k:03d}.png"), scene(k // 3, k))
    return folder


@pytest.fixture
def interrupted(images, teacher, student, tmp_path, monkeypatch) -> Path:
    """The work folder of a run that was interrupted before its frames were labelled."""
    with monkeypatch.context() as patch:
        patch.setattr(stages, "label", Mock(side_effect=KeyboardInterrupt))
        assert mine(tmp_path / "mined", images, teacher=teacher, student=student) == 130
    return tmp_path / ".mined.mining"


@pytest.mark.slow
def test_planted_work_folder_is_refused(interrupted, images, teacher, student, tmp_path, capsys):
    """Where others may write, they can plant links, and frames as finished work."""
    again = partial(mine, tmp_path / "mined", images, teacher=teacher, student=student)
    for part in ("images", "images/train", "labels/val", "predictions", "shards", ""):
        folder, elsewhere = interrupted / part, tmp_path / "elsewhere"
        folder.rename(elsewhere)
        folder.symlink_to(elsewhere)
        before = contents(elsewhere)
        assert again() == 2
        assert "expected a folder, got a link" in capsys.readouterr().err
        assert contents(elsewhere) == before
        folder.unlink()
        elsewhere.rename(folder)
    with mock.patch("os.geteuid", return_value=os.getuid() + 1):
        assert again() == 2
    assert "expected a folder of your own" in capsys.readouterr().err
    assert again() == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda shard: shard["candidates"][0].update(name="../../../outside"),
        lambda shard: shard["candidates"][0].update(index="1"),
        lambda shard: shard.pop("candidates"),
        lambda shard: shard["candidates"].append(7),
    ],
    ids=["name", "index", "missing", "type"],
)
def test_forged_scores_are_refused(
    interrupted, images, teacher, student, tmp_path, change, capsys
):
    file = next((interrupted / "shards").iterdir())
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    before = {p for p in tmp_path.rglob("*") if p.is_file()}
    assert mine(tmp_path / "mined", images, teacher=teacher, student=student) == 2
    assert "expected the scores of an interrupted run" in capsys.readouterr().err
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == before


def test_bag_with_a_problem_in_every_frame_gives_few_lines(teacher, student, tmp_path, capsys):
    frames = [
        ("/a", k * SECOND, image(scene(0, k), k * SECOND, f"\x1b[31m{k}")) for k in range(200)
    ]
    bag = write_bag(tmp_path / "bag", frames)
    assert mine(tmp_path / "mined", bag, teacher=teacher, student=student, frames=4) == 2
    captured = capsys.readouterr()
    assert captured.out.count("WARNING") <= 51 and "\x1b" not in captured.out + captured.err


@pytest.mark.slow
def test_flight_of_the_ledger_keeps_its_side_also_as_its_file(bag, teacher, student, tmp_path):
    other = tmp_path / "other.mcap"
    other.write_text("an earlier flight")
    ledger = tmp_path / "ledger.json"
    assert assign_sides([str(other), str(bag)], ledger)[str(bag)] == JUDGE
    file = next(path for path in bag.iterdir() if path.suffix in (".mcap", ".db3"))
    models = {"teacher": teacher, "student": student}
    assert mine(tmp_path / "mined", file, **models, extra=("--ledger", str(ledger))) == 0
    assert {row["split"] for row in table(tmp_path / "mined")} == {"val"}


@pytest.mark.slow
def test_of_five_flights_the_second_one_judges(teacher, student, tmp_path, monkeypatch):
    flights = [flight(tmp_path / f"flight{i}", seconds=6 + i) for i in range(5)]
    # The same one twice is one flight.
    four = [*flights[:4], flights[0]]
    for output, given, needed in (("five", flights, 1), ("four", four, 2)):
        monkeypatch.setattr(flight_ledger, "_MIN_JUDGING", needed)
        assert mine(tmp_path / output, *given, teacher=teacher, student=student) == 0
    judging = {row["flight"] for row in table(tmp_path / "five") if row["split"] == "val"}
    learning = {row["flight"] for row in table(tmp_path / "five") if row["split"] == "train"}
    assert judging == {str(flights[1])}
    assert learning == {str(f) for f in flights} - judging
    rows = table(tmp_path / "four")
    assert {r["flight"] for r in rows if r["split"] == "val"} & {
        r["flight"] for r in rows if r["split"] == "train"
    }
