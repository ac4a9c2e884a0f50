"""Damaged labels, predictions and data sets of others: values, or one documented error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the requirements of the training part: make setup")
pytest.importorskip("ultralytics", reason="needs the requirements of the training part")

import yaml
from hypothesis import given
from hypothesis import strategies as st

from drone_kd_training.data.dataset import DataError, image_paths, load_data, read_sample
from drone_kd_training.mining.annotation_formats import FORMATS, export_labels, import_labels
from drone_kd_training.models.checkpoints import UnusableModelError
from drone_kd_training.teachers.soft_labels import Predictions
from drone_kd_training.teachers.teachers import read_predictions
from drone_kd_training.teachers.teaching_plan import read_plan
from fuzzing import as_json, check_line, damaged, damaged_record, hostile_text, numbers, only

pytestmark = pytest.mark.slow

NAMES = ("car", "person")


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mined data set of two frames, and a folder of predictions for them."""
    folder = tmp_path_factory.mktemp("mined")
    labels = "0 0.5 0.5 0.25 0.25\n1 0.25 0.25 0.125 0.125\n"
    for part, stem in (("train", "a"), ("val", "b")):
        (folder / "images" / part).mkdir(parents=True)
        (folder / "labels" / part).mkdir(parents=True)
        image = folder / "images" / part / f"{stem}.png"
        cv2.imwrite(str(image), np.zeros((24, 32, 3), np.uint8))
        (folder / "labels" / part / f"{stem}.txt").write_text(labels)
    (folder / "predictions").mkdir()
    (folder / "predictions/a.txt").write_text("0 0.5 0.5 0.25 0.25 0.9\n")
    content = {"path": str(folder), "train": "images/train", "val": "images/val"}
    content |= {"names": dict(enumerate(NAMES))}  # type: ignore[dict-item]
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture(scope="module")
def exported(mined: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Annotations of the data set by format; of labelme one file."""
    folder = tmp_path_factory.mktemp("exported")
    found = {}
    for name in FORMATS:
        export_labels(mined, name, folder / name)
        path = folder / name
        found[name] = (path / "a.json" if path.is_dir() else path).read_bytes()
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@given(format_=st.sampled_from(sorted(FORMATS)), data=st.data())
def test_annotations_are_imported_or_refused(
    format_: str, data: st.DataObject, mined: Path, exported: dict[str, bytes], tmp_path: Path
) -> None:
    before = contents(mined)
    content = data.draw(_annotations(exported[format_]))
    source = tmp_path / format_
    if format_ == "labelme":
        source.mkdir(exist_ok=True)
        (source / "a.json").write_bytes(content)
    else:
        source.write_bytes(content)
    try:
        with only(DataError):
            import_labels(mined, format_, source, checked=True)
        for path in image_paths(mined / "images"):
            sample = read_sample(path, len(NAMES))
            assert sample is not None and np.isfinite(sample.xyxy).all()
        assert set(contents(mined)) <= {*before, "corrected.txt"}
    finally:
        (mined / "corrected.txt").unlink(missing_ok=True)
        for name, old in before.items():
            (mined / name).write_bytes(old)


def _annotations(content: bytes) -> st.SearchStrategy[bytes]:
    if content.startswith(b"<"):
        return damaged([content])
    record = damaged_record(json.loads(content))
    return damaged([content]) | record.map(lambda value: as_json(value).encode())


def lines(columns: int) -> st.SearchStrategy[str]:
    """Return label files: valid rows, rows of other lengths, and rows of anything."""
    share = st.floats(0, 1).map(lambda value: f"{value:.6f}")
    row = st.tuples(st.sampled_from("01"), *[share] * (columns - 1))
    other = st.lists(numbers.map(str) | hostile_text | share, max_size=8)
    text = st.one_of(row.map(list), row.map(list), other).map(" ".join)
    return st.lists(text, max_size=5).map("\n".join)


@given(text=lines(5) | st.text(max_size=50))
def test_label_file_is_read_or_its_image_ignored(
    text: str, mined: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    file = mined / "labels/train/a.txt"
    before = file.read_bytes()
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    sample = read_sample(mined / "images/train/a.png", len(NAMES))
    file.write_bytes(before)
    for record in caplog.records:
        check_line(record.getMessage())
    if sample is not None:
        assert np.isfinite(sample.xyxy).all()
        assert set(sample.class_ids) <= {0, 1}


@given(text=lines(6) | st.text(max_size=50))
def test_folder_of_predictions_is_read_or_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text, encoding="utf-8", errors="surrogatepass")
    with only(UnusableModelError):
        check_predictions(read_predictions(str(tmp_path), NAMES))


RESULTS = [
    {"image_id": "a", "category_id": 0, "bbox": [1, 2, 30, 40], "score": 0.9},
    {"image_id": 7, "category_id": 1, "bbox": [1.5, 2.5, 3.0, 4.0], "score": 0.1},
]


@given(record=damaged_record(RESULTS))
def test_coco_results_are_read_or_refused(record: Any, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(as_json(record), encoding="utf-8")
    with only(UnusableModelError):
        check_predictions(read_predictions(str(path), NAMES))


def check_predictions(predictions: Predictions) -> None:
    for boxes, scores in predictions.found.values():
        assert np.isfinite(boxes).all() and np.isfinite(scores).all()


@given(data=st.data())
def test_data_yaml_is_read_or_refused(data: st.DataObject, mined: Path) -> None:
    content = yaml.safe_load((mined / "data.yaml").read_text())
    content["names"] = list(NAMES)
    content = data.draw(damaged_record(content))
    path = mined / "other.yaml"
    path.write_text(as_json(content), encoding="utf-8")
    try:
        with only(DataError):
            load_data(path)
    finally:
        path.unlink()


PLAN = {
    "names": list(NAMES),
    "sources": {
        "day": {"data": "data.yaml", "labelled": ["car"], "classes": {"car": "car"}, "every": 1},
        "sky": {"images": "images/train", "empty": True, "repeat": 2, "crops": {"size": 64}},
    },
    "teachers": {
        "big": {
            "weights": "predictions",
            "sources": ["day"],
            "pseudo_threshold": {"car": 0.5},
            "pseudo_threshold_on": {"day": {"car": 0.4}},
            "weight": 0.5,
        }
    },
}


@given(data=st.data())
def test_teaching_plan_is_read_or_refused(data: st.DataObject, mined: Path) -> None:
    path = mined / "plan.yaml"
    path.write_text(as_json(data.draw(damaged_record(PLAN))), encoding="utf-8")
    try:
        with only(DataError, UnusableModelError):
            read_plan(path)
    finally:
        path.unlink()


def test_undamaged_plan_is_read(mined: Path) -> None:
    path = mined / "plan.yaml"
    path.write_text(as_json(PLAN), encoding="utf-8")
    assert [source.name for source in read_plan(path).sources] == ["day", "sky"]
