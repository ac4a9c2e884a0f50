"""The order of events in benchmarks.forecast, with a perfect detector on a moving ground."""

from __future__ import annotations

import numpy as np
import pytest

from drone_kd.core.detections import Detections
from drone_kd.simulation.scene import Frame
from drone_kd.tracking import Motion

forecast = pytest.importorskip("benchmarks.forecast", reason="benchmarks need the ROS messages")


def flight(frames: int = 60) -> object:
    """A parked car below a camera that moves by 12 px per frame."""
    pan = np.array([[1.0, 0, 12], [0, 1, 0], [0, 0, 1]])
    seen, motions = [], []
    image, one = np.zeros((1, 1, 3), np.uint8), np.zeros(1, np.int64)
    for n in range(frames):
        xyxy = np.array([[100 + 12 * n, 300, 150 + 12 * n, 330]], np.float32)
        truth = Frame(image, xyxy, one, one, n / 20)
        boxes = Detections(xyxy, np.ones(1, np.float32), one)
        seen.append(forecast.Seen(n * 50_000_000, truth, boxes))
        motions.append(Motion(n * 50_000_000, pan))
    return forecast.Flown(seen, {20.0: motions})


def test_held_boxes_are_late_and_forecast_ones_are_not():
    offline, held, ahead = forecast.serve(flight(), forecast.Case(10.0, 20.0, 100.0))
    assert len(held) == len(ahead) == 60
    assert len(offline) == pytest.approx(30, abs=2)
    truth, boxes = held[40]
    # The frame of two or three periods ago, whose inference has ended.
    assert truth.xyxy[0, 0] - boxes.xyxy[0, 0] in (24, 36)
    for truth, boxes in ahead[15:]:
        assert np.abs(boxes.xyxy - truth.xyxy).max() < 1
    assert all((truth.xyxy == boxes.xyxy).all() for truth, boxes in offline)
