"""Model of the package on a real drone image (source: drone_kd/data/README.md).

The image was in the training set: this shows that the packaged file works, not how accurate it is.
"""

import cv2
import numpy as np

from drone_kd.detector import load_detector
from drone_kd.paths import default_model_path, selftest_image_path


def test_packaged_model_is_small_and_has_its_model_card():
    path = default_model_path()
    assert path.stat().st_size <= 7_000_000
    assert "Attribution" in path.with_name("README.md").read_text()
    spec = load_detector().backend.spec
    assert spec.classes == ("person", "two-wheeler", "car", "truck", "bus")
    assert "HIT-UAV" in spec.attribution and spec.licence and spec.metrics["map50"] > 0


def test_packaged_model_detects_parked_cars():
    detector = load_detector()
    image = cv2.imread(str(selftest_image_path()))
    assert image is not None
    detections = detector(np.asarray(image, np.uint8))
    assert len(detections) >= 5
    assert {detector.backend.spec.classes[i] for i in detections.class_ids} == {"car"}
