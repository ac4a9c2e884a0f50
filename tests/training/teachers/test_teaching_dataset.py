"""From sources and teachers to a run: real predictions, real short trainings."""

import itertools
import json
import os
from collections import Counter
from pathlib import Path
from unittest.mock import Mock, create_autospec

import numpy as np
import pytest
import yaml
from ultralytics.utils import LOGGER

from drone_kd.cli import main
from drone_kd_training.data.dataset import image_paths, load_data, read_sample
from drone_kd_training.distillation import distill as distill_module
from drone_kd_training.distillation.config import Config
from drone_kd_training.distillation.distill import distill
from drone_kd_training.teachers import prediction_cache, teaching_dataset
from drone_kd_training.teachers.fusion import translate
from drone_kd_training.teachers.prediction_cache import PredictionCache
from drone_kd_training.teachers.soft_labels import Coverage
from drone_kd_training.teachers.teaching_dataset import (
    read_regions,
    write_frames,
)
from drone_kd_training.teachers.teaching_plan import read_plan
from folder_contents import contents
from tiny_training import SIZE, draw_set, save_checkpoint

SHORT = {
    "warmup_epochs": 0.0,
    "mosaic": 0.5,
    "close_mosaic": 0,
    "optimizer": "AdamW",
    "lr0": 0.002,
    "nbs": 6,
}


def write_plan(folder: Path, **streets) -> Path:
    """Write a plan of a set in which only cars are labelled, and of unlabelled images."""
    draw_set(folder / "streets", train=12)
    draw_set(folder / "more", train=4, seed=7)
    save_checkpoint(folder / "teacher.pt", names=("car", "human"))
    content = {
        "names": ["person", "car"],
        "sources": {"streets": {"data": "streets/data.yaml", "labelled": ["car"], **streets}},
    }
    content["sources"]["fields"] = {"images": "more/images/train"}
    big = {"weights": "teacher.pt", "imgsz": SIZE, "classes": {"human": "person"}}
    content["teachers"] = {"big": {**big, "sources": ["fields"]}}
    path = folder / "teachers.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def config(plan: Path, **changes) -> Config:
    values = {
        "student": "aerial-student.yaml",
        "epochs": 1,
        "imgsz": SIZE,
        "batch": 6,
        "val": False,
        "overrides": SHORT,
    }
    return Config(data="", teacher="", teachers=str(plan), **{**values, **changes})


def test_labels_predictions_and_coverage_of_sources(tmp_path):
    plan = read_plan(write_plan(tmp_path))
    frames = write_frames(plan, tmp_path / "frames")
    data = load_data(frames.data)
    assert data.names == ("person", "car")
    listed = [Path(line) for line in data.train.read_text().splitlines()]
    kinds, kind_of = read_regions(tmp_path / "frames" / "regions.json")
    assert kinds == [Coverage((False, True), (False, False)), Coverage((False,) * 2, (True,) * 2)]
    assert [kind_of[str(p)] for p in listed] == [0] * 12 + [1] * 4
    first = read_sample(listed[0], 2)  # the person is not labelled, the car is class 1 now
    assert first.class_ids.tolist() == [1]
    own = read_sample(plan.sources[0].train[0], 2)
    np.testing.assert_allclose(first.xyxy, own.xyxy[own.class_ids == 0], atol=0.01)
    predictions = {
        p.stem: p.read_text() for p in (tmp_path / "frames/predictions").glob("*-*.txt")
    }
    assert len(predictions) == 16
    assert not predictions["streets-00000"] and predictions["fields-00000"]
    path, labelled = frames.val["streets"]
    assert labelled == ("car",) and len(image_paths(load_data(path).val)) == 6


@pytest.mark.slow
def test_sources_stay_as_they_are_and_a_read_only_plan_is_taught(tmp_path, monkeypatch):
    """A read-only medium: the predictions are cached beside the frames."""
    medium = tmp_path / "medium"
    path = write_plan(medium)
    output = tmp_path / "output"
    writable = os.access
    monkeypatch.setattr(
        os, "access", lambda p, mode: not Path(p).is_relative_to(medium) and writable(p, mode)
    )
    before = contents(medium)
    write_frames(read_plan(path), output / "frames")
    assert contents(medium) == before
    assert len(list((output / "predictions").rglob("*.npy"))) == 4


@pytest.mark.slow
def test_frames_behind_a_link_replace_the_link_only(tmp_path):
    path = write_plan(tmp_path)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    before = contents(precious)
    (tmp_path / "frames").symlink_to(precious)
    write_frames(read_plan(path), tmp_path / "frames")
    assert contents(precious) == before and not (tmp_path / "frames").is_symlink()


def record_predictions(monkeypatch) -> list[tuple[str, str]]:
    """Return a list that grows by (teacher, tiles) with every image a teacher predicts."""
    calls = []
    predict = prediction_cache.PredictionCache._predict

    def counted(self, image):
        calls.append((self.teacher.name, self.teacher.tiles))
        return predict(self, image)

    monkeypatch.setattr(prediction_cache.PredictionCache, "_predict", counted)
    return calls


@pytest.mark.slow
def test_run_with_two_teachers_thresholds_weights_and_tiles(tmp_path, monkeypatch):
    """Each of `every`, `pseudo_threshold`, `weight` and `tiles` shows in a real run."""
    path = write_plan(tmp_path, every=2)
    save_checkpoint(tmp_path / "other.pt", names=("human", "car"))
    content = yaml.safe_load(path.read_text())
    content["sources"]["fields"]["every"] = 2
    big = content["teachers"]["big"] | {"sources": ["fields", "streets"], "weight": {"person": 1}}
    content["teachers"] = {
        "big": big,
        "tiled": {
            **big,
            "weights": "other.pt",
            "tiles": "2x2",
            "pseudo_threshold": {"person": 0.9},
            "weight": {"person": 0.5},
        },
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    calls = record_predictions(monkeypatch)
    lines = []
    monkeypatch.setattr(LOGGER, "info", lambda line, *_: lines.append(str(line)))
    command = ["distill", "--teachers", str(path), "--student", "aerial-student.yaml"]
    command += ["--output", str(tmp_path / "out"), "--epochs", "1", "--imgsz", str(SIZE)]
    command += ["--batch", "6", *(f"--set={k}={v}" for k, v in SHORT.items())]
    assert main(command) == 0
    table = read_plan(path).table()
    started = next(i for i, line in enumerate(lines) if "Starting training" in line)
    assert lines.index(table) < started  # what teaches what is logged before the training
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(metrics["sources"]) == {"streets"}
    assert set(metrics["sources"]["streets"]["per_class"]) == {"car"}
    assert metrics["student"]["images"] == 6 and "streets car" in metrics["student"]["per_class"]
    # Every second image: 6 of 12 and 2 of 4, once per teacher; one of them in tiles.
    assert Counter(calls) == {("big", "off"): 8, ("tiled", "2x2"): 8}
    weights = {line.split(":")[0]: line for line in lines if line.startswith("weight of ")}
    assert "person 1.00 (given)" in weights["weight of big"]  # no labels of persons to measure on
    assert "person 0.50 (given)" in weights["weight of tiled"]
    assert "car" in weights["weight of big"]

    plan = read_plan(path)
    caches = [PredictionCache(t, plan.predictions, plan.names) for t in plan.teachers]
    frames = tmp_path / "out" / "frames" / "predictions"
    for number, image in enumerate(plan.sources[1].train):
        tables = [
            translate(cache.of(image, (SIZE, SIZE)), teacher, "fields", plan.names)
            for cache, teacher in zip(caches, plan.teachers, strict=True)
        ]
        rows = np.loadtxt(frames / f"fields-{number:05d}.txt", ndmin=2)
        scores = np.sort(rows[rows[:, 0] == 0, 5])
        best = max(table[table[:, 5] == 0, 4].max(initial=0) * w
                   for table, w in zip(tables, (1.0, 0.5), strict=True))  # fmt: skip
        assert scores[-1] == pytest.approx(best, abs=1e-3)
    # The higher threshold of the second teacher lowers its scores.
    own = caches[1].of(plan.sources[1].train[0], (SIZE, SIZE))
    kept = translate(own, plan.teachers[1], "fields", plan.names)
    persons, raw = kept[kept[:, 5] == 0, 4], own[own[:, 5] == 0, 4]
    assert len(persons) and persons.max() == pytest.approx(raw.max() * 0.6 / 0.9, abs=1e-3)


@pytest.mark.slow
def test_interrupted_run_resumes_in_every_phase(tmp_path, monkeypatch):
    run, output = config(write_plan(tmp_path)), tmp_path / "out"
    cached = tmp_path / "predictions"

    def interrupt(place, name: str, call: int) -> Mock:
        """Interrupt at a call of a function, and return the mock that counted the calls."""
        function, number = getattr(place, name), itertools.count(1)

        def stop(*args, **more):
            if next(number) == call:
                raise KeyboardInterrupt
            return function(*args, **more)

        with monkeypatch.context() as patch:
            mock = create_autospec(function, side_effect=stop)
            patch.setattr(place, name, mock)
            with pytest.raises(KeyboardInterrupt):
                distill(run, output, resume=output.exists())
        assert not (output / "best.pt").exists()
        return mock

    interrupt(prediction_cache.PredictionCache, "_predict", 3)
    assert len(list(cached.rglob("*.npy"))) == 2
    interrupt(teaching_dataset, "fuse", 3)
    assert len(list(cached.rglob("*.npy"))) == 4
    predict = create_autospec(prediction_cache.PredictionCache._predict)
    monkeypatch.setattr(prediction_cache.PredictionCache, "_predict", predict)
    interrupt(distill_module, "evaluate", 1)
    steps = (output / "results.csv").read_text()
    metrics = distill(run, output, resume=True)
    assert metrics["sources"]["streets"]["images"] == 6 and (output / "best.pt").is_file()
    assert not predict.called  # all predictions were cached
    assert (output / "results.csv").read_text() == steps  # nothing was trained again
