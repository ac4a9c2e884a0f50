"""Unlabelled flights of a run; most of their parts have tests of their own."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from drone_kd_training.data.dataset import image_paths, load_data
from drone_kd_training.data.names import DataError
from drone_kd_training.distillation.claims import claim
from drone_kd_training.distillation.config import NO_TEACHER, Config
from drone_kd_training.distillation.distill import LOCK, distill, prepare_data, validate
from drone_kd_training.distillation.train_data import (
    FRAME_BOXES,
    FRAMES,
    read_pseudo_labels,
    read_thresholds,
)
from drone_kd_training.distillation.unlabelled import check_threshold, read_expectation
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.models.safe_loading import write_plain
from drone_kd_training.teachers.teaching_dataset import REGIONS, read_regions
from tiny_training import NAMES, SIZE, draw_set

RUN = {"student": "aerial-student.yaml", "epochs": 1, "imgsz": SIZE, "batch": 6, "val": False}
SHORT = {"optimizer": "SGD", "warmup_epochs": 0.0, "mosaic": 0.0, "close_mosaic": 0, "nbs": 6}


@pytest.fixture
def flight(tmp_path) -> Path:
    """Return a folder of frames of other places than those of ``tiny_data``."""
    draw_set(tmp_path / "other", train=8, val=1, seed=77)
    return tmp_path / "other" / "images" / "train"


def config(data: Path | str, teacher: Path | str, *flights: Path, **changes) -> Config:
    given = {**RUN, "overrides": SHORT, "unlabelled": tuple(map(str, flights)), **changes}
    return Config(str(data), str(teacher), **given)


def listed(output: Path) -> list[str]:
    return (output / "train.txt").read_text(encoding="utf-8").split()


def test_frames_of_flights_join_the_labelled_ones(tiny_data, tiny_teacher, flight, tmp_path):
    output = tmp_path / "run"
    run = validate(config(tiny_data, tiny_teacher, flight), output, resume=False)
    run, _ = prepare_data(run)
    paths = listed(output)
    own = [path for path in paths if Path(path).parent == flight.resolve() or "flights" in path]
    assert len(set(own)) == 8
    assert len(own) / len(paths) == pytest.approx(0.5, abs=0.15)  # the default share
    thresholds = read_thresholds(output / "frames")
    assert thresholds is not None
    assert all(0.1 <= score <= 0.8 for score in thresholds.high)
    expectation = read_expectation(output)
    assert set(expectation["classes"]) == set(NAMES)
    assert expectation["frames"]["unlabelled"]["all"] == 8


@pytest.mark.parametrize(
    ("text", "high"),
    [
        ("0.4", [0.4, 0.4]),
        (f"{NAMES[1]}=0.7", [None, 0.7]),
        (f"{NAMES[1]}=0.7,0.3", [0.3, 0.7]),
    ],
)
def test_a_given_threshold_is_used(text, high, tiny_data, tiny_teacher, flight, tmp_path):
    given = config(tiny_data, tiny_teacher, flight, pseudo_threshold=text)
    prepare_data(validate(given, tmp_path / "run", resume=False))
    found = read_thresholds(tmp_path / "run" / "frames")
    for wanted, score, low in zip(high, found.high, found.low, strict=True):
        assert wanted in (None, score)
        assert low <= score


def test_pseudo_labels_of_frames_are_predicted_once(tiny_data, tiny_teacher, flight, tmp_path):
    output = tmp_path / "run"
    given = config(tiny_data, tiny_teacher, flight, pseudo_labels="frame")
    prepare_data(validate(given, output, resume=False))
    found = read_pseudo_labels(output / "frames", NAMES)
    assert found is not None
    assert set(found.found) == set(listed(output)) - set(
        map(str, image_paths(load_data(tiny_data).train))
    )
    thresholds = read_thresholds(output / "frames")
    scores = np.concatenate([scores for _, scores in found.found.values()])
    above = (scores >= thresholds.high).sum(axis=0).tolist()
    expected = read_expectation(output)["classes"].values()
    assert above == [row["pseudo_labels"] for row in expected]
    # A start with other settings forgets them.
    prepare_data(validate(config(tiny_data, tiny_teacher, flight), output, resume=False))
    assert read_pseudo_labels(output / "frames", NAMES) is None


@pytest.mark.parametrize("text", ["", "much", "0", "1.5", "nan", "tank=0.5", f"{NAMES[0]}=x"])
def test_thresholds_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="pseudo_threshold must be auto, a score"):
        check_threshold(text, NAMES)


def test_validation_images_as_a_flight_are_refused(tiny_data, tiny_teacher, tmp_path):
    val = tiny_data.parent / "images" / "val"
    run = validate(config(tiny_data, tiny_teacher, val), tmp_path / "run", resume=False)
    with pytest.raises(DataError, match="near duplicates of validation images"):
        prepare_data(run)


def test_flights_that_cannot_be_used_are_named(tiny_data, tiny_teacher, flight, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="missing: no such folder, list, video or bag"):
        validate(config(tiny_data, tiny_teacher, tmp_path / "missing"), tmp_path / "run", False)
    run = validate(config(tiny_data, tiny_teacher, empty), tmp_path / "run", resume=False)
    with pytest.raises(ValueError, match="empty"):
        prepare_data(run)


def test_a_teacher_that_finds_nothing_is_refused(tiny_data, tiny_teacher, flight, tmp_path):
    blind, _ = load_model(str(tiny_teacher))
    with torch.no_grad():
        for branch in blind.model[-1].cv3:
            branch[-1].bias.fill_(-15.0)
    torch.save({"model": blind}, tmp_path / "blind.pt")
    given = config(tiny_data, tmp_path / "blind.pt", flight)
    with pytest.raises(DataError, match="the teacher finds nothing in 8 unlabelled frames"):
        prepare_data(validate(given, tmp_path / "run", resume=False))


@pytest.mark.parametrize(
    ("classes", "match"),
    [
        (("car", "tank"), "every class needs the teacher, expected some of car, person, got car"),
        (("car", " car"), "class names must be unique"),
        (("car", ""), "expected a name of 1 to 100 characters"),
    ],
)
def test_classes_that_cannot_be_taught_are_refused(classes, match, tiny_teacher, flight, tmp_path):
    given = config("", tiny_teacher, flight, classes=classes)
    with pytest.raises(DataError, match=match):
        validate(given, tmp_path / "run", resume=False)
    assert not (tmp_path / "run").exists()


def test_labelled_images_in_a_flight_stay_labelled(tiny_teacher, tmp_path):
    """One of them has no label file: it shows no object."""
    data = draw_set(tmp_path / "own")
    train = data.parent / "images" / "train"
    (data.parent / "labels" / "train" / "000.txt").unlink()
    few = data.with_name("few.yaml")
    few.with_name("few.txt").write_text(f"{train / '000.png'}\n{train / '001.png'}\n")
    few.write_text(data.read_text().replace("images/train", "few.txt"))
    prepare_data(validate(config(few, tiny_teacher, train), tmp_path / "run", resume=False))
    kinds, kind_of = read_regions(tmp_path / "run" / "frames" / REGIONS)
    assert len(kind_of) == 12
    labelled = [path for path, kind in kind_of.items() if all(kinds[kind].labelled)]
    assert [Path(path).name for path in labelled] == ["000.png", "001.png"]
    run = validate(config(data, tiny_teacher, train), tmp_path / "other", resume=False)
    with pytest.raises(DataError, match="got the training images alone"):
        prepare_data(run)


def test_an_unreadable_labelled_image_does_not_stop_the_run(tiny_teacher, flight, tmp_path):
    data = draw_set(tmp_path / "own")
    (data.parent / "images" / "train" / "000.png").write_bytes(b"")
    prepare_data(validate(config(data, tiny_teacher, flight), tmp_path / "run", False))
    assert read_expectation(tmp_path / "run")["frames"]["labelled"]["read"] == 11


def test_a_resumed_run_keeps_its_flights(tiny_data, tiny_teacher, flight, tmp_path):
    output = tmp_path / "run"
    given = config(tiny_data, tiny_teacher, flight, fraction=0.5)
    run, _ = prepare_data(validate(given, output, resume=False))
    before = listed(output)
    run.state.parent.mkdir()
    write_plain(run.state, {"epoch": 0})
    prepare_data(validate(given, output, resume=True))
    assert listed(output) == before


def test_a_resumed_run_needs_the_pseudo_labels_of_its_frames(
    tiny_data, tiny_teacher, flight, tmp_path, caplog
):
    output = tmp_path / "run"
    given = config(tiny_data, tiny_teacher, flight, pseudo_labels="frame")
    run, _ = prepare_data(validate(given, output, resume=False))
    run.state.parent.mkdir()
    write_plain(run.state, {"epoch": 0})
    prepare_data(validate(given, output, resume=True))
    assert "--resume continues" not in caplog.text
    resumed = validate(config(tiny_data, tiny_teacher, flight), output, resume=True)
    assert "config.yaml: pseudo_labels frame" in caplog.text  # "view", the default, was given
    (output / FRAMES / FRAME_BOXES).unlink()
    with pytest.raises(DataError, match="expected boxes on unlabelled frames, got no file; start"):
        prepare_data(resumed)


def test_a_start_with_other_settings_learns_nothing_of_the_first(
    tiny_data, tiny_teacher, flight, tmp_path
):
    output = tmp_path / "run"
    prepare_data(validate(config(tiny_data, tiny_teacher, flight), output, resume=False))
    assert read_expectation(output)
    prepare_data(validate(config(tiny_data, tiny_teacher), output, resume=False))
    assert read_expectation(output) is None
    assert read_thresholds(output / "frames") is None


def test_a_folder_in_use_is_refused(tiny_data, tiny_teacher, flight, tmp_path):
    output = tmp_path / "run"
    given = config(tiny_data, tiny_teacher, flight)
    with claim(output / LOCK), pytest.raises(ValueError, match="in use by another process"):
        distill(given, output)
    assert [path.name for path in output.iterdir()] == [LOCK]
    prepare_data(validate(given, output, resume=False))  # the lock alone does not matter


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"teacher": NO_TEACHER}, "unlabelled frames need a teacher"),
        ({"classes": ("person",)}, "leave --classes out"),
        ({"data": "", "classes": ("person",), "unlabelled": ()}, "need --unlabelled"),
        ({"data": "", "classes": ("person",), "val": True}, "nothing can be validated"),
        ({"tile": "big"}, "tile must be auto, off or a number"),
        ({"tile": "16"}, "from 32 to 8192, got 16"),
        ({"tile": "9000"}, "from 32 to 8192, got 9000"),
        ({"unlabelled": ("",)}, "unlabelled must be paths that are not empty"),
        ({"views": 4, "overrides": {"multi_scale": 0.5}}, "leave multi_scale or --views out"),
        ({"pseudo_labels": "both"}, "pseudo_labels must be view or frame, got both"),
        ({"max_frames": 0}, "max_frames must be 1 or more"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"labelled_share": 1.0}, "labelled_share must be"),
        ({"views": 4, "terms": ("feature",)}, "leave --views out"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, match):
    given = {"data": "d.yaml", "teacher": "t.pt", "unlabelled": ("x",), **RUN, **changes}
    with pytest.raises(ValueError, match=match):
        Config(**given)


@pytest.mark.slow
@pytest.mark.parametrize("pseudo_labels", ["view", "frame"])
def test_flights_alone_teach_a_student(pseudo_labels, tiny_teacher, flight, tmp_path):
    changes = {"classes": NAMES[:1], "steps": 3, "views": 2, "pseudo_labels": pseudo_labels}
    given = config("", tiny_teacher, flight, **changes)
    metrics = distill(given, tmp_path / "run")
    assert metrics["student"]["map50_95"] is None
    assert metrics["teacher"] is None
    assert metrics["learned_from"]["frames"]["labelled"]["all"] == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics
    assert "no labels" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("teachers.teacher_scores._run", KeyboardInterrupt()),
        ("distillation.unlabelled.add_unlabelled", KeyboardInterrupt()),
        ("distillation.stored_views.StoredViews.write", KeyboardInterrupt()),
        ("distillation.distill.evaluate", KeyboardInterrupt()),
        (
            "distillation.stored_views.write_plain",
            OSError(errno.ENOSPC, "No space left on device"),
        ),
    ],
)
def test_a_run_that_stops_in_any_phase_can_be_resumed(
    where, error, tiny_data, tiny_teacher, flight, tmp_path, monkeypatch
):
    given = config(tiny_data, tiny_teacher, flight, views=2, pseudo_labels="frame")
    output = tmp_path / "run"

    def stop(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(f"drone_kd_training.{where}", stop)
        with pytest.raises(type(error)):
            distill(given, output, measure_teacher=False)
    assert not (output / "metrics.json").exists()
    metrics = distill(given, output, resume=True, measure_teacher=False)
    assert metrics["learned_from"]["frames"]["unlabelled"]["all"] == 8
