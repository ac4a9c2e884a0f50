from collections import Counter

import cv2
import numpy as np
import pytest

from drone_kd.core.detections import Detections
from drone_kd.ros.recording.frame_selection import (
    RANDOM,
    Selector,
    disagreement,
    look,
    movement,
    novelty,
    uncertainty,
)

WIDTH, HEIGHT = 320, 240
STILL = np.zeros(2, np.float32)
rng = np.random.default_rng(0)
# Ground with structure of every size, larger than the picture.
GROUND = cv2.GaussianBlur(rng.integers(0, 256, (600, 600, 3), dtype=np.uint8), (0, 0), 5)
GROUND = cv2.normalize(GROUND, None, 0, 255, cv2.NORM_MINMAX)


def view(x=100, y=100):
    return GROUND[y : y + HEIGHT, x : x + WIDTH]


def boxes(*centres, scores=None, classes=None):
    n = len(centres)
    xy = np.array(centres, np.float32).reshape(n, 2)
    return Detections(
        np.hstack([xy - 8, xy + 8]).astype(np.float32),
        np.full(n, 0.95, np.float32) if scores is None else np.array(scores, np.float32),
        np.zeros(n, np.int64) if classes is None else np.array(classes, np.int64),
    )


NOTHING = boxes()


def test_uncertainty():
    assert uncertainty(np.array([0.5, 0.5])) == 1
    assert uncertainty(np.array([0.0, 1.0])) == 0
    assert uncertainty(np.array([0.5, 1.0])) == pytest.approx(0.5)
    assert uncertainty(np.zeros(0)) == 0


@pytest.mark.parametrize(
    ("before", "after", "moved", "share"),
    [
        (NOTHING, NOTHING, (0, 0), 0),
        (boxes((50, 50)), boxes((52, 50)), (0, 0), 0),
        (boxes((50, 50)), NOTHING, (0, 0), 1),
        (boxes((50, 50), (100, 50)), boxes((50, 50)), (0, 0), 1 / 3),
        (boxes((50, 50)), boxes((90, 50)), (0, 0), 1),
        (boxes((50, 50)), boxes((90, 50)), (40, 0), 0),  # the drone moved, not the object
        (boxes((310, 50), (50, 50)), boxes((90, 50)), (40, 0), 0),  # one left the picture
        (boxes((50, 50)), boxes((90, 50), (5, 50)), (40, 0), 0),  # one came into it
        (boxes((50, 50)), boxes((50, 50), classes=[1]), (0, 0), 1),
    ],
)
def test_disagreement(before, after, moved, share):
    moved = np.array(moved, np.float32)
    assert disagreement(before, after, moved, WIDTH, HEIGHT) == pytest.approx(share)


def test_movement_is_that_of_the_whole_picture():
    moved = movement(look(view(100, 100)), look(view(90, 106)), WIDTH, HEIGHT)
    np.testing.assert_allclose(moved, (10, -6), atol=1.5)
    noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    np.testing.assert_array_equal(movement(look(view()), look(noise), WIDTH, HEIGHT), STILL)


def test_novelty_is_of_the_scene_and_not_of_the_place_in_it():
    here = look(view())
    assert novelty(here, []) == 1
    assert novelty(here, [here]) == pytest.approx(0, abs=1e-5)
    assert novelty(look(view(130, 120)), [here]) < 0.3
    night = (view() * 0.2).astype(np.uint8)
    assert novelty(look(night), [here]) > 0.7
    assert novelty(look(night), [here, look(night)]) == pytest.approx(0, abs=1e-5)


def choose(frames, per_minute=60, random_share=0.0, seed=0):
    """Run frames of (seconds, image, detections); returns the choices, by number of frame."""
    selector, chosen = Selector(per_minute, random_share, seed), []
    for number, (now, image, detections) in enumerate(frames):
        chosen.append(selector.take(now))
        selector.see(now, number, image, detections, WIDTH, HEIGHT)
    chosen.append(selector.take(float("inf")))
    return [choice for choice in chosen if choice is not None]


def test_what_is_easy_and_known_is_left():
    frames = [(k / 10, view(), boxes((50, 50))) for k in range(100)]
    (first,) = choose(frames)
    assert first.reasons == ("novelty",) and first.measures["novelty"] == 1


def test_each_reason_finds_its_frame():
    sure, night = boxes((50, 50)), (view() * 0.2).astype(np.uint8)
    frames = [[k / 10, view(), sure] for k in range(100)]
    frames[33][2] = boxes((50, 50), scores=[0.5])
    frames[57][1] = night
    for k in range(75, 79):
        frames[k][2] = NOTHING
    chosen = {choice.frame: choice.reasons for choice in choose(frames)}
    assert chosen[33] == ("uncertainty",)
    assert "novelty" in chosen[57]
    # It vanishes in the one, comes back in the other.
    assert {chosen.get(75), chosen.get(79)} & {("disagreement",)}


def test_the_hardest_of_a_slot_wins():
    scores = (0.9, 0.6, 0.52, 0.7)
    frames = [(k / 10, view(), boxes((50, 50), scores=[scores[k]])) for k in range(4)]
    frames = [(-2.0, view(), boxes((50, 50))), (-1.5, view(), boxes((50, 50)))] + frames
    assert [choice.frame for choice in choose(frames)][-1] == 4


def test_never_more_than_per_minute():
    frames = [(k / 10, view(), boxes((50, 50), scores=[0.5])) for k in range(600)]
    assert len(choose(frames, per_minute=30)) == 30
    assert len(choose(frames, per_minute=6)) == 6


def test_a_random_share_sees_what_the_model_is_blind_to():
    frames = [(k / 10, view(), NOTHING) for k in range(1500)]
    chosen = [c for c in choose(frames, random_share=0.2) if c.reasons == (RANDOM,)]
    assert 20 < len(chosen) < 40  # of 150 slots
    places = Counter(choice.frame % 10 for choice in chosen)
    assert len(places) >= 7, "any frame of a slot"
    again = [c for c in choose(frames, random_share=0.2) if c.reasons == (RANDOM,)]
    other = [c for c in choose(frames, random_share=0.2, seed=1) if c.reasons == (RANDOM,)]
    assert [c.frame for c in again] == [c.frame for c in chosen] != [c.frame for c in other]


def test_frames_far_apart_do_not_disagree():
    frames = [(float(k), view(), boxes((50, 50)) if k % 2 else NOTHING) for k in range(20)]
    assert all("disagreement" not in choice.reasons for choice in choose(frames))


def test_pictures_of_any_size():
    for shape in ((1, 1, 3), (48, 3000, 3), (2160, 3840, 3)):
        sight = look(np.full(shape, 200, np.uint8))
        assert sight.grey.shape == (64, 64) and sight.colours.sum() == pytest.approx(1)
