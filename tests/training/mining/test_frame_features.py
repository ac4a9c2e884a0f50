# SPDX-License-Identifier: AGPL-3.0-or-later
import numpy as np
import pytest

from drone_kd_training.mining.flights import Frame
from drone_kd_training.mining.frame_features import drop_near_duplicates, embed
from drone_kd_training.mining.stages import SCENE_DISTANCE
from recorded import scene


def frames(*images, block=0):
    return [Frame(i, float(i), block, image) for i, image in enumerate(images)]


def test_near_duplicates_are_dropped_and_small_motion_is_kept():
    noise = np.random.default_rng(0).integers(-4, 5, (480, 640, 3))
    ground = scene(0, 0, 640, 480)
    noisy = np.clip(ground + noise, 0, 255).astype(np.uint8)
    moved = ground.copy()
    moved[300:320, 300:320] = 255  # a car of 20 px has come
    kept = list(drop_near_duplicates(frames(ground, noisy, ground, moved, moved)))
    assert [k.frame.number for k in kept] == [0, 3]
    assert kept[0].shift is None
    # Every time block starts again.
    assert len(list(drop_near_duplicates(frames(ground) + frames(ground, block=1)))) == 2


def test_shift_is_the_cameras_motion():
    wide = np.random.default_rng(0).integers(0, 255, (96, 160, 3), dtype=np.uint8)
    wide = np.kron(wide, np.ones((8, 8, 1), np.uint8))
    a, b = wide[:, 0:1000], wide[:, 100:1100]
    shift = list(drop_near_duplicates(frames(a, b)))[1].shift
    assert shift == pytest.approx((-0.1, 0), abs=0.02)


def test_embedding_tells_places_apart_but_not_moving_cars():
    assert np.linalg.norm(embed(scene(0)) - embed(scene(1))) > SCENE_DISTANCE
    ground = scene(0, 0, 640, 480)
    moved = ground.copy()
    moved[300:320, 300:320] = 255
    assert np.linalg.norm(embed(ground) - embed(moved)) < SCENE_DISTANCE
