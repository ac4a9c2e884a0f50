"""The scorer of flights and the evaluation of data sets are one yardstick."""

import itertools

import cv2
import pytest

from drone_kd.detector import load_detector
from drone_kd.paths import default_model_path
from drone_kd.simulation.scene import CLASSES, FlightPlan, fly
from drone_kd.simulation.scoring.flight_record import Flight
from drone_kd.simulation.scoring.score import score
from drone_kd_training.evaluation.evaluate import CONFIDENCE, IOU, evaluate

FRAMES, STEP_NS = 10, 10**8


@pytest.mark.slow
def test_a_flight_without_latency_scores_as_its_frames_do_offline(tmp_path):
    """Of the real model on real frames: equal to 3 decimals, in both ways of scoring."""
    for kind in ("images", "labels"):
        (tmp_path / kind / "val").mkdir(parents=True)
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(CLASSES))
    (tmp_path / "data.yaml").write_text(f"train: images/val\nval: images/val\nnames:\n{names}")
    detector = load_detector(confidence=CONFIDENCE, iou=IOU, max_detections=300)
    classes = detector.backend.spec.classes
    flight = Flight()
    flight.add({"classes": list(classes)})
    plan = FlightPlan(seed=2, width=640, height=360, scene="car-park", fps=1)
    for k, frame in enumerate(itertools.islice(fly(plan), FRAMES)):
        cv2.imwrite(str(tmp_path / "images" / "val" / f"{k:02d}.png"), frame.image)
        rows = []
        for (x0, y0, x1, y1), c in zip(frame.xyxy.tolist(), frame.class_ids, strict=True):
            place = (x0 + x1) / 1280, (y0 + y1) / 720, (x1 - x0) / 640, (y1 - y0) / 360
            rows.append(f"{c} " + " ".join(f"{v:.9f}" for v in place) + "\n")
        (tmp_path / "labels" / "val" / f"{k:02d}.txt").write_text("".join(rows))
        found = detector(frame.image)
        boxes = [
            [CLASSES[c], str(i), *box]
            for box, c, i in zip(frame.xyxy.tolist(), frame.class_ids, frame.ids, strict=True)
        ]
        said = [
            [classes[c], s, *box]
            for box, s, c in zip(
                found.xyxy.tolist(), found.scores.tolist(), found.class_ids, strict=True
            )
        ]
        at = k * STEP_NS
        flight.add({"truth": at, "at": at, "boxes": boxes})
        flight.add({"result": at, "at": at, "boxes": said})
    wanted = evaluate(default_model_path(), tmp_path / "data.yaml")
    scored = score(flight)
    assert wanted["map50"] > 0.05 and wanted["boxes"] == scored["objects"] > 100
    for way in ("offline", "sap"):
        for key in ("map50_95", "map50"):
            assert scored[way][key] == pytest.approx(wanted[key], abs=5e-4)
        for name, values in wanted["per_class"].items():
            if name in scored["classes"]:
                assert scored[way]["ap50"][name] == pytest.approx(values["ap50"], abs=5e-4)
