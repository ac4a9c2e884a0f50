"""The model that comes with the package, on a real drone picture.

The picture is credited in drone_kd/data/README.md. The model has seen it in training, so this says
that the file in the package works, and nothing about how good it is.
"""

import cv2

from drone_kd.detector import load_detector
from drone_kd.paths import default_model_path, selftest_image_path


def test_it_is_small_and_has_its_card():
    path = default_model_path()
    assert path.stat().st_size <= 7_000_000
    assert "Attribution" in path.with_name("README.md").read_text()
    spec = load_detector().backend.spec
    assert spec.classes == ("person", "two-wheeler", "car", "truck", "bus")
    assert "HIT-UAV" in spec.attribution and spec.licence and spec.metrics["map50"] > 0


def test_it_finds_parked_cars():
    detector = load_detector()
    found = detector(cv2.imread(str(selftest_image_path())))
    assert len(found) >= 5
    assert {detector.backend.spec.classes[i] for i in found.class_ids} == {"car"}
