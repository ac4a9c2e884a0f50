"""From sources and teachers to a run: real answers, real short trainings."""

import io
import json
import logging
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from ultralytics.utils import LOGGER

import drone_kd_training.distillation.distill
import drone_kd_training.teachers.prediction_cache
from drone_kd.cli import main
from drone_kd_training.data.dataset import image_paths, load_data, read_sample
from drone_kd_training.distillation.config import Config
from drone_kd_training.distillation.distill import distill
from drone_kd_training.teachers.plan import Crops, read_plan
from drone_kd_training.teachers.soft_labels import Coverage
from drone_kd_training.teachers.teaching_dataset import (
    _spans,
    boxes_inside,
    read_regions,
    views,
    write_frames,
)
from tiny_training import SIZE, draw_set, save_checkpoint

SHORT = {
    "warmup_epochs": 0.0,
    "mosaic": 0.5,
    "close_mosaic": 0,
    "optimizer": "AdamW",
    "lr0": 0.002,
    "nbs": 6,
}


def write_plan(folder: Path, teachers: bool = True, **streets) -> Path:
    """A set in which cars alone count as labelled, and like pictures without labels."""
    draw_set(folder / "streets", train=12)
    draw_set(folder / "more", train=4, seed=7)
    save_checkpoint(folder / "teacher.pt", names=("car", "human"))
    content = {
        "names": ["person", "car"],
        "sources": {"streets": {"data": "streets/data.yaml", "labelled": ["car"], **streets}},
    }
    if teachers:
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


def test_labels_answers_and_who_speaks_for_what(tmp_path):
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
    answers = {p.stem: p.read_text() for p in (tmp_path / "frames/answers").glob("*-*.txt")}
    assert len(answers) == 16 and not answers["streets-00000"] and answers["fields-00000"]
    path, labelled = frames.val["streets"]
    assert labelled == ("car",) and len(image_paths(load_data(path).val)) == 6


def test_answers_are_kept_by_teacher_size_and_picture(tmp_path, monkeypatch, caplog):
    asked = []
    ask = drone_kd_training.teachers.prediction_cache.Answers._ask

    def count(self, image):
        asked.append(self.teacher.imgsz)
        return ask(self, image)

    monkeypatch.setattr(drone_kd_training.teachers.prediction_cache.Answers, "_ask", count)
    path = write_plan(tmp_path)
    plan = read_plan(path)
    write_frames(plan, tmp_path / "a")
    write_frames(plan, tmp_path / "b")
    assert len(asked) == 4
    picture = tmp_path / "more/images/train/000.png"  # another picture of the same name
    cv2.imwrite(str(picture), 255 - cv2.imread(str(picture)))
    drone_kd_training.teachers.prediction_cache.file_hash.cache_clear()
    write_frames(plan, tmp_path / "c")
    assert len(asked) == 5
    said = []
    monkeypatch.setattr(drone_kd_training.teachers.prediction_cache.LOGGER, "info", said.append)
    larger = replace(plan, teachers=(replace(plan.teachers[0], imgsz=2 * SIZE),))
    write_frames(larger, tmp_path / "d")
    assert len(asked) == 9
    assert any("another input size or other tiles: computed again" in line for line in said)


def test_windows_hold_what_lies_in_them():
    image = np.zeros((100, 250, 3), np.uint8)
    image[40:60, 200:220] = 255
    truth = np.array([[200 / 250, 0.4, 220 / 250, 0.6, 1.0]])
    seen = []
    for suffix, pixels, window in views(image, Crops(size=100, scales=(1.0, 0.5, 2.0))):
        boxes = boxes_inside(truth, window)[:, :4] * ([pixels.shape[1], pixels.shape[0]] * 2)
        for x1, y1, x2, y2 in boxes.round().astype(int):
            # The white square, wherever it went; enlarged, its edges are soft.
            least = 127 if suffix.startswith("-2.00") else 200
            assert pixels[y1:y2, x1:x2].min() > least
            seen.append(pixels.shape[:2])
    # Whole, whole and half as large, and twice as large in two halves.
    assert seen == [(100, 100), (50, 100), (100, 100), (100, 100)]
    assert _spans(250, 100) == [(0, 100), (75, 175), (150, 250)] and _spans(50, 100) == [(0, 50)]
    cut = np.array([[0.0, 0.0, 0.4, 1.0, 0], [0.0, 0.0, 1.0, 1.0, 0]])
    kept = boxes_inside(cut, (0.35, 0.0, 1.0, 1.0))
    assert len(kept) == 1  # an eighth of the first is too little


def test_the_command_says_who_teaches_what_and_measures_each_source(tmp_path):
    plan = write_plan(tmp_path)
    command = ["distill", "--teachers", str(plan), "--student", "aerial-student.yaml"]
    command += ["--output", str(tmp_path / "out"), "--epochs", "1", "--imgsz", str(SIZE)]
    command += ["--batch", "6", *(f"--set={k}={v}" for k, v in SHORT.items())]
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    LOGGER.addHandler(handler)
    try:
        assert main(command) == 0
    finally:
        LOGGER.removeHandler(handler)
    text = said.getvalue()
    assert text.index("nobody: masked") < text.index("Starting training")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(metrics["sources"]) == {"streets"}
    assert set(metrics["sources"]["streets"]["per_class"]) == {"car"}
    assert metrics["student"]["images"] == 6 and "streets car" in metrics["student"]["per_class"]


@pytest.mark.parametrize("phase", ["answers", "frames", "figures"])
def test_interrupted_anywhere_it_goes_on(tmp_path, monkeypatch, phase):
    plan = write_plan(tmp_path)
    place = {
        "answers": (drone_kd_training.teachers.prediction_cache.Answers, "_ask"),
        "frames": (drone_kd_training.teachers.teaching_dataset, "fuse"),
        "figures": (drone_kd_training.distillation.distill, "evaluate"),
    }[phase]
    whole = getattr(*place)
    calls = []

    def stop_at_the_third(*args, **more):
        calls.append(args)
        if len(calls) == (1 if phase == "figures" else 3):
            raise KeyboardInterrupt
        return whole(*args, **more)

    monkeypatch.setattr(*place, stop_at_the_third)
    run, output = config(plan), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        distill(run, output)
    assert not (output / "best.pt").exists()
    steps = (output / "results.csv").read_text() if phase == "figures" else ""
    metrics = distill(run, output, resume=True)
    assert metrics["sources"]["streets"]["images"] == 6 and (output / "best.pt").is_file()
    if phase == "answers":
        assert len(calls) == 3 + 2  # the two that were there were not asked for again
    if phase == "figures":
        assert (output / "results.csv").read_text() == steps  # nothing was trained again
