"""Selection of hard frames: measures, reasons, slots."""

from collections import Counter

import cv2
import numpy as np
import pytest

from drone_kd.core.detections import Detections
from drone_kd.detector import DecodedImage
from drone_kd.ros.recording.frame_selection import (
    RANDOM,
    Selector,
    describe,
    disagreement,
    movement,
    novelty,
    uncertainty,
)

WIDTH, HEIGHT = 320, 240
STILL = np.zeros(2, np.float32)
rng = np.random.default_rng(0)
# Ground texture with structure of every size, larger than the image.
GROUND = cv2.GaussianBlur(rng.integers(0, 256, (600, 600, 3), dtype=np.uint8), (0, 0), 5)
GROUND = cv2.normalize(GROUND, GROUND.copy(), 0, 255, cv2.NORM_MINMAX)


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
        (boxes((310, 50), (50, 50)), boxes((90, 50)), (40, 0), 0),  # one left the image
        (boxes((50, 50)), boxes((90, 50), (5, 50)), (40, 0), 0),  # one came into it
        (boxes((50, 50)), boxes((50, 50), classes=[1]), (0, 0), 1),
    ],
)
def test_disagreement(before, after, moved, share):
    moved = np.array(moved, np.float32)
    assert disagreement(before, after, moved, WIDTH, HEIGHT) == pytest.approx(share)


def test_movement_is_that_of_the_whole_image():
    moved = movement(describe(view(100, 100)), describe(view(90, 106)), WIDTH, HEIGHT)
    np.testing.assert_allclose(moved, (10, -6), atol=1.5)
    noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        movement(describe(view()), describe(noise), WIDTH, HEIGHT), STILL
    )


def test_novelty_ignores_the_position_in_the_scene():
    here = describe(view())
    assert novelty(here, []) == 1
    assert novelty(here, [here]) == pytest.approx(0, abs=1e-5)
    assert novelty(describe(view(130, 120)), [here]) < 0.3
    night = (view() * 0.2).astype(np.uint8)
    assert novelty(describe(night), [here]) > 0.7
    assert novelty(describe(night), [here, describe(night)]) == pytest.approx(0, abs=1e-5)


def choose(frames, per_minute=60, random_share=0.0, seed=0):
    """Run frames of (seconds, image, detections); returns the choices, by number of frame."""
    selector, chosen = Selector(per_minute, random_share, seed), []
    for number, (now, image, detections) in enumerate(frames):
        chosen.append(selector.take(now))
        selector.see(now, number, DecodedImage(image, WIDTH, HEIGHT), detections)
    chosen.append(selector.take(float("inf")))
    return [choice for choice in chosen if choice is not None]


def test_easy_known_frames_are_not_selected():
    frames = [(k / 10, view(), boxes((50, 50))) for k in range(100)]
    (first,) = choose(frames)
    assert first.reasons == ("novelty",) and first.measures["novelty"] == 1


def test_each_reason_selects_its_frame():
    sure, night = boxes((50, 50)), (view() * 0.2).astype(np.uint8)
    frames = [[k / 10, view(), sure] for k in range(100)]
    frames[33][2] = boxes((50, 50), scores=[0.5])
    frames[57][1] = night
    for k in range(75, 79):
        frames[k][2] = NOTHING
    chosen = {choice.frame: choice.reasons for choice in choose(frames)}
    assert chosen[33] == ("uncertainty",)
    assert "novelty" in chosen[57]
    # The object vanishes in the first, and returns in the second.
    assert {chosen.get(75), chosen.get(79)} & {("disagreement",)}


def test_hardest_frame_of_a_slot_is_selected():
    scores = (0.9, 0.6, 0.52, 0.7)
    frames = [(k / 10, view(), boxes((50, 50), scores=[scores[k]])) for k in range(4)]
    frames = [(-2.0, view(), boxes((50, 50))), (-1.5, view(), boxes((50, 50)))] + frames
    assert [choice.frame for choice in choose(frames)][-1] == 4


def test_never_more_than_per_minute():
    frames = [(k / 10, view(), boxes((50, 50), scores=[0.5])) for k in range(300)]
    assert len(choose(frames, per_minute=30)) == 15
    assert len(choose(frames, per_minute=6)) == 3


def test_random_slots_select_any_frame():
    frames = [(k / 10, view(), NOTHING) for k in range(600)]
    chosen = [c for c in choose(frames, random_share=0.2) if c.reasons == (RANDOM,)]
    assert 6 <= len(chosen) <= 18  # of 60 slots
    places = Counter(choice.frame % 10 for choice in chosen)
    assert len(places) >= 5, "any frame of a slot"
    again = [c for c in choose(frames, random_share=0.2) if c.reasons == (RANDOM,)]
    other = [c for c in choose(frames, random_share=0.2, seed=1) if c.reasons == (RANDOM,)]
    assert [c.frame for c in again] == [c.frame for c in chosen] != [c.frame for c in other]


def test_frames_far_apart_do_not_disagree():
    frames = [(float(k), view(), boxes((50, 50)) if k % 2 else NOTHING) for k in range(20)]
    assert all("disagreement" not in choice.reasons for choice in choose(frames))


def test_images_of_any_size():
    for shape in ((1, 1, 3), (48, 3000, 3), (2160, 3840, 3)):
        descriptor = describe(np.full(shape, 200, np.uint8))
        assert descriptor.grey.shape == (64, 64) and descriptor.colours.sum() == pytest.approx(1)
