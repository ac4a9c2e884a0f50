from __future__ import annotations

import numpy as np
import pytest

from drone_kd.core.detections import Detections
from drone_kd.tracking import Motion, Quality, Tracker, TrackerSettings, Tracks
from drone_kd.tracking.homography import warp_points

PERIOD = 100_000_000
STILL = np.eye(3)
PAN = np.array([[1.0, 0, 30.0], [0, 1, -12.0], [0, 0, 1]])


def found(*boxes, scores=None, classes=None) -> Detections:
    n = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.full(n, 0.8, np.float32) if scores is None else np.array(scores, np.float32),
        np.zeros(n, np.int64) if classes is None else np.array(classes, np.int64),
    )


def box(x: float, y: float, w: float = 40, h: float = 20) -> tuple[float, float, float, float]:
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def middles(tracks: Tracks) -> np.ndarray:
    xyxy = tracks.detections.xyxy
    return (xyxy[:, :2] + xyxy[:, 2:]) / 2


def fly(tracker: Tracker, frames: int, place, motion=STILL, delay: int = 0) -> None:
    """Feed frames; `place(n)` gives the detections of frame n, which come `delay` frames later."""
    for n in range(frames):
        tracker.add_motion(Motion(n * PERIOD, motion))
        if n >= delay:
            assert tracker.update((n - delay) * PERIOD, place(n - delay))


@pytest.mark.parametrize("delay", [0, 3])
def test_constant_velocity_is_forecast_exactly_whatever_the_delay(delay):
    tracker = Tracker(1280, 720)
    fly(tracker, 30, lambda n: found(box(100 + 15 * n, 300 + 4 * n)), delay=delay)
    ahead = tracker.predict(31 * PERIOD)
    assert np.abs(middles(ahead) - (100 + 15 * 31, 300 + 4 * 31)).max() < 1
    assert np.abs(ahead.velocity - (150, 40)).max() < 5
    assert ahead.ids.tolist() == [1]


def test_detections_of_an_old_frame_are_moved_along_the_camera():
    tracker, ground = Tracker(1280, 720), np.array([[300.0, 500.0]])

    def place(n: int) -> Detections:
        x, y = warp_points(np.linalg.matrix_power(PAN, n), ground)[0]
        return found(box(x, y))

    fly(tracker, 20, place, PAN, delay=4)
    for n in (16, 19, 21):
        expected = warp_points(np.linalg.matrix_power(PAN, n), ground)
        assert np.abs(middles(tracker.predict(n * PERIOD)) - expected).max() < 0.5
    # A parked car has no velocity.
    assert np.abs(tracker.predict(19 * PERIOD).velocity).max() < 1


def test_box_grows_as_the_camera_descends():
    zoom = np.array([[1.02, 0, -0.02 * 640], [0, 1.02, -0.02 * 360], [0, 0, 1]])
    tracker = Tracker(1280, 720)
    fly(tracker, 5, lambda n: found(box(640, 360)))
    for n in range(5, 11):
        tracker.add_motion(Motion(n * PERIOD, zoom))
    x1, y1, x2, y2 = tracker.predict(12 * PERIOD).detections.xyxy[0]
    assert (x2 - x1, y2 - y1) == pytest.approx((40 * 1.02**8, 20 * 1.02**8), rel=0.01)


def test_prediction_leaves_the_tracker_as_it_was():
    tracker = Tracker(1280, 720)
    fly(tracker, 5, lambda n: found(box(100 + 15 * n, 300)), PAN)
    first = tracker.predict(6 * PERIOD)
    tracker.predict(9 * PERIOD)
    assert np.array_equal(first.detections.xyxy, tracker.predict(6 * PERIOD).detections.xyxy)


def test_uncertainty_grows_with_the_time_of_the_forecast():
    tracker = Tracker(1280, 720)
    fly(tracker, 8, lambda n: found(box(300, 300)))
    spread = [tracker.predict((7 + n) * PERIOD).covariance[0, 0, 0] for n in range(6)]
    assert spread == sorted(spread)
    assert spread[-1] > 1.5 * spread[0]


def test_beyond_the_horizon_nothing_is_predicted():
    tracker = Tracker(1280, 720, TrackerSettings(horizon_s=0.5))
    fly(tracker, 5, lambda n: found(box(300, 300)))
    assert len(tracker.predict(9 * PERIOD)) == 1
    assert len(tracker.predict(9 * PERIOD + 1)) == 0


def test_covariance_is_honest():
    # Objects as the filter supposes them: the mean normalised squared error is 2, as of chi-square
    # with 2 degrees of freedom. One tracker holds 60 objects, far apart.
    noise, rng = TrackerSettings().noise, np.random.default_rng(0)
    tracker, size, step = Tracker(12800, 7200), 40.0, PERIOD / 1e9
    x, y = np.meshgrid(np.arange(10) * 1200.0 + 900, np.arange(6) * 1100.0 + 700)
    place = np.column_stack([x.ravel(), y.ravel()])
    speed = rng.normal(0, 40, place.shape)
    jerk = noise.acceleration * size * (step / 20) ** 0.5
    for n in range(16):
        tracker.add_motion(Motion(n * PERIOD, STILL))
        if n < 15:
            spread = np.hypot(noise.position * size, noise.position_px)
            seen = place + rng.normal(0, spread, place.shape)
            tracker.update(n * PERIOD, found(*(box(*at, size, size) for at in seen)))
            for _ in range(20):  # small steps between two frames
                place = place + speed * step / 20
                speed = speed + rng.normal(0, jerk, place.shape)
    ahead = tracker.predict(15 * PERIOD)
    order = np.argsort(ahead.ids)
    assert len(order) == len(place)
    error = middles(ahead)[order] - place
    covariance = ahead.covariance[order]
    normalised = np.einsum("ni,nij,nj->n", error, np.linalg.inv(covariance), error)
    assert 1.0 < normalised.mean() < 3.0


def test_ids_are_kept_where_two_objects_cross():
    tracker = Tracker(1280, 720)
    fly(tracker, 41, lambda n: found(box(200 + 20 * n, 300), box(1000 - 20 * n, 316)))
    tracks = tracker.predict(40 * PERIOD)
    place = dict(zip(tracks.ids.tolist(), middles(tracks)[:, 0].tolist(), strict=True))
    assert place == {1: pytest.approx(1000, abs=3), 2: pytest.approx(200, abs=3)}


def test_id_survives_gaps_and_is_never_used_again():
    tracker = Tracker(1280, 720)
    fly(
        tracker, 60, lambda n: found() if n in (6, 7, 8) or n > 20 else found(box(100 + 9 * n, 90))
    )
    assert len(tracker.predict(59 * PERIOD)) == 0
    tracker.update(59 * PERIOD, found(box(700, 90)))
    assert tracker.predict(59 * PERIOD).ids.tolist() == [2]


def test_empty_frames_end_a_track_at_its_greatest_age():
    tracker = Tracker(1280, 720, TrackerSettings(max_age_s=0.5))
    fly(tracker, 10, lambda n: found(box(300, 300)))
    alive = []
    for n in range(10, 20):
        tracker.add_motion(Motion(n * PERIOD, STILL))
        tracker.update(n * PERIOD, found())
        alive.append(len(tracker.predict(n * PERIOD)))
    assert alive == [1] * 5 + [0] * 5


def test_score_of_a_missing_object_falls():
    tracker = Tracker(1280, 720)
    fly(tracker, 8, lambda n: found(box(300, 300)) if n < 5 else found())
    assert tracker.predict(7 * PERIOD).detections.scores[0] == pytest.approx(0.8 * 0.7**3)


def test_new_object_is_confirmed_by_its_second_detection():
    tracker = Tracker(1280, 720)
    fly(tracker, 1, lambda n: found(box(300, 300)))
    assert tracker.predict(0).confirmed.tolist() == [False]
    tracker.add_motion(Motion(PERIOD, STILL))
    tracker.update(PERIOD, found(box(302, 300)))
    assert tracker.predict(PERIOD).confirmed.tolist() == [True]


def test_class_is_that_of_most_votes_and_an_object_has_one():
    tracker = Tracker(1280, 720)
    fly(
        tracker,
        9,
        lambda n: found(
            box(300, 300), box(301, 300), scores=[0.6, 0.5], classes=[2 if n % 4 == 3 else 1, 3]
        ),
    )
    tracks = tracker.predict(8 * PERIOD)
    assert tracks.ids.tolist() == [1]
    assert tracks.detections.class_ids.tolist() == [3]


def test_low_scores_continue_a_track_after_the_high_ones():
    tracker = Tracker(1280, 720, TrackerSettings(new_score=0.25))
    fly(tracker, 10, lambda n: found(box(300, 300), scores=[0.8 if n < 5 else 0.1]))
    tracks = tracker.predict(9 * PERIOD)
    assert (tracks.ids.tolist(), tracks.unseen_s.tolist()) == ([1], [0])
    tracker.update(9 * PERIOD, found(box(800, 300), scores=[0.1]))
    assert 2 not in tracker.predict(9 * PERIOD).ids


def test_tracks_outside_the_searched_windows_miss_nothing():
    tracker = Tracker(1280, 720)
    fly(tracker, 4, lambda n: found(box(200, 300), box(900, 300)))
    left = np.array([[0, 0, 640, 720]])
    for n in range(4, 7):
        tracker.add_motion(Motion(n * PERIOD, STILL))
        tracker.update(n * PERIOD, found(box(200, 300)), left)
    scores = tracker.predict(6 * PERIOD).detections.scores
    assert np.allclose(scores, 0.8, atol=1e-6)


def test_lost_motion_widens_tracks_until_they_end():
    tracker = Tracker(1280, 720)
    fly(tracker, 5, lambda n: found(box(300, 300)), PAN)
    before = tracker.predict(4 * PERIOD).covariance[0, 0, 0]
    tracker.add_motion(Motion(5 * PERIOD, None, Quality.LOST))
    assert len(tracker.predict(5 * PERIOD)) == 0 or (
        tracker.predict(5 * PERIOD).covariance[0, 0, 0] > 20 * before
    )
    for n in range(6, 10):
        tracker.add_motion(Motion(n * PERIOD, None, Quality.LOST))
    assert len(tracker.predict(9 * PERIOD)) == 0


def test_box_cut_off_by_the_border_keeps_its_size():
    left, right = (np.array([[1.0, 0, x], [0, 1, 0], [0, 0, 1]]) for x in (-5, 60))
    tracker = Tracker(1280, 720)
    fly(tracker, 12, lambda n: found(np.clip(box(60 - 5 * n, 300), 0, 1280)), left)
    x1, _, x2, _ = tracker.predict(11 * PERIOD).detections.xyxy[0]
    assert (x1, x2) == pytest.approx((0, 25), abs=1)
    tracker.add_motion(Motion(12 * PERIOD, right))
    x1, _, x2, _ = tracker.predict(12 * PERIOD).detections.xyxy[0]
    assert (x1, x2) == pytest.approx((45, 85), abs=2)


def test_box_that_enters_the_frame_grows_from_the_border():
    tracker, right = Tracker(1280, 720), np.array([[1.0, 0, 30.0], [0, 1, 0], [0, 0, 1]])
    # A bus of 120 px comes in from the left, 30 px per frame.
    seen = [found((max(30 * n - 120, 0), 300, 30 * n, 330)) for n in range(1, 8)]
    for n, detections in enumerate(seen):
        tracker.add_motion(Motion(n * PERIOD, right))
        ahead = tracker.predict(n * PERIOD)
        if 0 < n < 4:
            assert ahead.detections.xyxy[0] == pytest.approx([0, 300, 30 * n + 30, 330], abs=3)
        tracker.update(n * PERIOD, detections)
    after = tracker.predict(7 * PERIOD)
    assert after.ids.tolist() == [1]
    assert after.detections.xyxy[0] == pytest.approx([120, 300, 240, 330], abs=6)


def test_detections_out_of_order_or_of_unknown_frames_change_nothing():
    tracker = Tracker(1280, 720)
    assert not tracker.update(0, found(box(1, 1)))
    fly(tracker, 5, lambda n: found(box(300, 300)))
    assert not tracker.update(3 * PERIOD, found(box(900, 300)))
    assert not tracker.update(5 * PERIOD, found(box(900, 300)))
    assert tracker.predict(4 * PERIOD).ids.tolist() == [1]


def test_clock_that_goes_back_ends_all_tracks_and_no_id_returns():
    tracker = Tracker(1280, 720)
    fly(tracker, 5, lambda n: found(box(300, 300)))
    fly(tracker, 2, lambda n: found(box(300, 300)))
    assert tracker.predict(PERIOD).ids.tolist() == [2]


@pytest.mark.slow
def test_thousand_boxes_are_tracked():
    tracker = Tracker(4000, 3000)
    boxes = [box(50 + 80 * (i % 48), 40 + 100 * (i // 48)) for i in range(1000)]
    fly(tracker, 3, lambda n: found(*boxes), PAN @ np.linalg.inv(PAN))
    assert sorted(tracker.predict(2 * PERIOD).ids.tolist()) == [*range(1, 1001)]


@pytest.mark.parametrize(
    ("name", "value"), [("high_score", 1.1), ("confirm_hits", 0), ("horizon_s", float("nan"))]
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        TrackerSettings(**{name: value})
