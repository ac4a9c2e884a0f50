"""Title and facts of a run's report."""

from pathlib import Path

import pytest

from drone_kd_training.distillation.config import Config
from drone_kd_training.distillation.run_report import facts, title


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "yolo11n.yaml taught by big.pt on set.yaml"),
        ({"teacher": "none"}, "yolo11n.yaml trained on set.yaml without a teacher"),
    ],
)
def test_title_says_what_was_trained(settings, expected):
    found = title(Config(**{**BASE, **settings}))
    assert found == expected


def test_facts_of_a_run():
    student = {"parameters": 2_600_000, "gflops": 6.44, "images": 8, "boxes": 109}
    student["per_class"] = {"car": {}, "person": {}}
    found = facts(Config(**BASE), {"student": student, "seconds": 125})
    assert found["Student"] == "2.60 million parameters, 6.4 GFLOPs at 320 x 320 pixels"
    assert found["Classes"] == "car, person"
    assert "3 epochs, seed 0, 2:05 min" in found["Training"] and "class" in found["Training"]
    by_steps = facts(Config(**BASE, steps=250), {"student": student, "seconds": 125})
    assert by_steps["Training"].startswith("252 steps, seed 0")  # whole epochs
    assert found["Validation"] == "8 images with 109 labelled objects"


BASE = {
    "data": Path("/a/set.yaml"),
    "teacher": "/b/big.pt",
    "student": "yolo11n.yaml",
    "epochs": 3,
    "imgsz": 320,
}
