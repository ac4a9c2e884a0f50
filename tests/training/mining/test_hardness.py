# SPDX-License-Identifier: AGPL-3.0-or-later
import pytest

from drone_kd_training.mining.hardness import disagreement, flicker
from mining_flights import detections


def test_disagreement_counts_misses_by_their_scores():
    car = (10, 10, 30, 30, 0.9, 0)
    nothing = detections()
    assert disagreement(nothing, nothing) == 0
    assert disagreement(detections(car), detections(car)) == pytest.approx(0)
    missed = disagreement(detections(car), nothing)
    assert missed == pytest.approx(0.9 / 1.9)
    assert disagreement(nothing, detections(car)) == pytest.approx(missed)
    weak = (10, 10, 30, 30, 0.2, 0)
    assert disagreement(detections(weak), nothing) < missed
    other_class = (10, 10, 30, 30, 0.9, 1)
    assert disagreement(detections(car), detections(other_class)) > missed
    many = [(i * 50, 0, i * 50 + 20, 20, 0.9, 0) for i in range(9)]
    assert disagreement(detections(*many), detections(*many[:-1])) < missed  # one of nine


def test_flicker_follows_the_cameras_motion():
    car, moved = (10, 10, 20, 20, 0.8, 0), (74, 10, 84, 20, 0.8, 0)
    size = (640, 480)
    assert flicker(detections(car), detections(moved), (0.1, 0.0), size) == pytest.approx(
        0, abs=1e-6
    )
    assert flicker(detections(car), detections(moved), (0.0, 0.0), size) > 0.5
    assert flicker(detections(car), detections(), (0.1, 0.0), size) == pytest.approx(0.8 / 1.8)
