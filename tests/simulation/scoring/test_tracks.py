import numpy as np
import pytest

from drone_kd.simulation.scoring.flight_record import Leg, truth_of
from drone_kd.simulation.scoring.tracks import TrueTracks

MS = 10**6


def tracks(frames):
    """Tracks of rows of ground truth by time in ms."""
    return TrueTracks(Leg({at * MS: truth_of(rows) for at, rows in frames.items()}))


def car(track, x, *ignored):
    return ["car", track, x, 0, x + 10, 10, *ignored]


def test_boxes_are_linear_between_frames():
    seen = tracks({0: [car("a", 0), car("b", 50)], 200: [car("b", 50), car("a", 40)]})
    assert len(list(seen.grid())) == 21
    half = seen.at(50 * MS)
    assert half.ids == ("a", "b") and not half.ignored.any()
    np.testing.assert_allclose(half.xyxy[:, 0], [10, 50])
    np.testing.assert_allclose(seen.at(200 * MS).xyxy[:, 0], [50, 40])
    assert seen.at(-1) is None and seen.at(200 * MS + 1) is None


@pytest.mark.parametrize("track", ["a", ""])
def test_an_object_in_only_one_frame_is_ignored_in_between(track):
    seen = tracks({0: [car(track, 0), car("z", 90)], 100: [car("z", 90), car("c", 30)]})
    between = seen.at(50 * MS)
    assert between.ids == (track, "z", "c") and between.ignored.tolist() == [True, False, True]
    assert not seen.at(0).ignored.any() and not seen.at(100 * MS).ignored.any()


def test_an_object_ignored_in_one_frame_is_ignored_in_between():
    seen = tracks({0: [car("a", 0, True)], 100: [car("a", 10)], 200: [car("a", 20)]})
    assert seen.at(30 * MS).ignored.all() and not seen.at(130 * MS).ignored.any()


def test_a_track_that_changes_its_class_is_not_interpolated():
    seen = tracks({0: [car("a", 0)], 100: [["bus", *car("a", 0)[1:]]]})
    assert seen.at(50 * MS).ignored.all()


def test_long_gaps_are_left_out_and_without_ids_frames_are_the_grid():
    seen = tracks({0: [car("a", 0)], 100: [car("a", 10)], 1200: [car("a", 20)]})
    assert list(seen.grid()) == [t * MS for t in (*range(0, 101, 10), 1200)]
    assert list(tracks({0: [car("", 0)], 70: []}).grid()) == [0, 70 * MS]
