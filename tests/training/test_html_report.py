"""The HTML report of training runs."""

import numpy as np

from drone_kd.core.detections import Detections
from drone_kd_training import html_report
from drone_kd_training.data.dataset import Sample, image_paths, load_data, read_sample
from drone_kd_training.html_report import (
    IMAGES,
    Sides,
    example_frames,
    found_objects,
    write_report,
)
from drone_kd_training.models.checkpoints import load_model

NAMES = ("car", "person")


def make_detections(*rows: tuple) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def test_object_is_found_once_and_by_its_class():
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], np.float32)
    sample = Sample(None, np.zeros((60, 60, 3), np.uint8), boxes, np.array([0, 0, 1]))
    found = make_detections(
        (0, 0, 10, 10, 0.9, 1),  # the model numbers its classes differently: 1 is its car
        (1, 0, 11, 10, 0.8, 1),  # the same car again
        (20, 0, 30, 10, 0.7, 0),  # a car called a person
        (44, 4, 54, 14, 0.6, 0),  # too far off
    )
    assert found_objects(sample, found, ("person", "car"), NAMES).tolist() == [True, False, False]
    assert found_objects(sample, make_detections(), NAMES, NAMES).tolist() == [False] * 3


def test_names_are_escaped_and_missing_classes_are_a_dash(tmp_path):
    scores = dict.fromkeys(("map50_95", "map50", "ap_tiny", "ap_small", "ap_medium"), 0.5)
    models = {
        "<b>teacher</b>": {**scores, "per_class": {"car": {"ap50_95": 0.25, "ap50": 0.75}}},
        "student": {**scores, "per_class": {"person": {"ap50_95": None, "ap50": 0.1}}},
    }
    sides = Sides(10, 1, 4, [np.zeros((8, 16, 3), np.uint8)])
    table = "Primary: +2.0\n\n| arm | seeds |\n|---|---|\n| baseline | 3 |\n\nA note\n\n| p |\n"
    write_report(tmp_path / "r.html", "Title", models, {}, sides, table)
    page = (tmp_path / "r.html").read_text()
    assert "&lt;b&gt;teacher" in page and "<td>25.0 / 75.0</td>" in page
    assert "<td>- / -</td>" in page and "<td>baseline</td>" in page and "---" not in page
    parts = ("<p>Primary: +2.0</p>", "<td>arm</td>", "<p>A note</p>", "<td>p</td>")
    assert sorted(parts, key=page.index) == [*parts] and "data:image/jpeg" in page
    assert "10 labelled objects, 4 were found by the distilled" in page
    assert "and 1 by the baseline" in page and "http" not in page


def test_example_frames_ring_the_missed_objects(
    tiny_data, square_detector, tiny_teacher, monkeypatch
):
    paths = image_paths(load_data(tiny_data).val)
    count, missed = min(IMAGES, len(paths)), []
    for checkpoint in (square_detector, tiny_teacher):  # the latter finds nothing
        rings = []
        monkeypatch.setattr(html_report, "draw_ring", lambda *a, r=rings: r.append(a))
        frames = example_frames(load_model(str(checkpoint))[0], tiny_data, 64)
        assert len(frames) == count and frames[0].shape == (640, 1280, 3)
        missed.append(len(rings))
    assert missed[1] == sum(len(read_sample(p, 2).xyxy) for p in paths[:count])
    assert missed[0] < missed[1] / 3


def test_facts_and_frames_are_on_the_page(tmp_path):
    frame = np.zeros((8, 16, 3), np.uint8)
    write_report(tmp_path / "r.html", "A title", {}, {}, facts={"Seed": "<7>"}, frames=[frame] * 2)
    page = (tmp_path / "r.html").read_text()
    assert "<h1>A title</h1>" in page and "Seed: &lt;7&gt;<br>" in page
    assert page.count("data:image/jpeg") == 2 and "Validation image 2: boxes" in page
