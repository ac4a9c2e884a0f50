# SPDX-License-Identifier: AGPL-3.0-or-later
import numpy as np
import pytest

from drone_kd.core.detections import Detections
from drone_kd_training.mining.flights import Frame
from drone_kd_training.mining.frame_features import embed, thin
from drone_kd_training.mining.hardness import disagreement, flicker
from drone_kd_training.mining.stages import SCENE_DISTANCE
from drone_kd_training.mining.student_and_teacher import fuse
from recorded import scene


def found(*rows):
    """Detections of (x1, y1, x2, y2, score, class)."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def frames(*pictures, block=0):
    return [Frame(i, float(i), block, picture) for i, picture in enumerate(pictures)]


def test_near_duplicates_are_left_out_and_small_motion_is_not():
    noise = np.random.default_rng(0).integers(-4, 5, (480, 640, 3))
    ground = scene(0, 0, 640, 480)
    noisy = np.clip(ground + noise, 0, 255).astype(np.uint8)
    moved = ground.copy()
    moved[300:320, 300:320] = 255  # a car of 20 px has come
    kept = list(thin(frames(ground, noisy, ground, moved, moved)))
    assert [k.frame.index for k in kept] == [0, 3]
    assert kept[0].shift is None
    # Every time block starts anew.
    assert len(list(thin(frames(ground) + frames(ground, block=1)))) == 2


def test_the_cameras_motion_is_found():
    wide = np.random.default_rng(0).integers(0, 255, (96, 160, 3), dtype=np.uint8)
    wide = np.kron(wide, np.ones((8, 8, 1), np.uint8))
    a, b = wide[:, 0:1000], wide[:, 100:1100]
    shift = list(thin(frames(a, b)))[1].shift
    assert shift == pytest.approx((-0.1, 0), abs=0.02)


def test_another_place_is_far_and_a_moving_car_is_near():
    assert np.linalg.norm(embed(scene(0)) - embed(scene(1))) > SCENE_DISTANCE
    ground = scene(0, 0, 640, 480)
    moved = ground.copy()
    moved[300:320, 300:320] = 255
    assert np.linalg.norm(embed(ground) - embed(moved)) < SCENE_DISTANCE


def test_disagreement_counts_misses_by_their_scores():
    car = (10, 10, 30, 30, 0.9, 0)
    nothing = found()
    assert disagreement(nothing, nothing) == 0
    assert disagreement(found(car), found(car)) == pytest.approx(0)
    missed = disagreement(found(car), nothing)
    assert missed == pytest.approx(0.9 / 1.9)
    assert disagreement(nothing, found(car)) == pytest.approx(missed)
    weak = (10, 10, 30, 30, 0.2, 0)
    assert disagreement(found(weak), nothing) < missed
    other_class = (10, 10, 30, 30, 0.9, 1)
    assert disagreement(found(car), found(other_class)) > missed
    many = [(i * 50, 0, i * 50 + 20, 20, 0.9, 0) for i in range(9)]
    assert disagreement(found(*many), found(*many[:-1])) < missed  # one of nine


def test_flicker_follows_the_cameras_motion():
    car, moved = (10, 10, 20, 20, 0.8, 0), (74, 10, 84, 20, 0.8, 0)
    size = (640, 480)
    assert flicker(found(car), found(moved), (0.1, 0.0), size) == pytest.approx(0, abs=1e-6)
    assert flicker(found(car), found(moved), (0.0, 0.0), size) > 0.5
    assert flicker(found(car), found(), (0.1, 0.0), size) == pytest.approx(0.8 / 1.8)


def test_a_box_that_one_of_two_looks_misses_has_half_its_score():
    both, one = (10, 10, 30, 30, 0.8, 0), (50, 50, 60, 60, 0.8, 1)
    fused = fuse([found(both, one), found((12, 10, 32, 30, 0.8, 0))], 100, 100)
    np.testing.assert_allclose(fused.xyxy, [[11, 10, 31, 30], [50, 50, 60, 60]], atol=1e-4)
    np.testing.assert_allclose(fused.scores, [0.8, 0.4], atol=1e-6)
    assert fused.class_ids.tolist() == [0, 1]
    assert len(fuse([found(), found()], 100, 100)) == 0
    assert len(fuse([found((5, 5, 5, 9, 0.9, 0)), found()], 100, 100)) == 0  # no area
