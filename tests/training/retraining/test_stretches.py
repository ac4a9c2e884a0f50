# SPDX-License-Identifier: AGPL-3.0-or-later
from pathlib import Path

import numpy as np
import pytest

from drone_kd_training.retraining.stretches import STRETCH, frame_blocks

MANY = 1000  # more flights than any case has: blocks are stretches


def blocks(names: list[str], least: int = MANY) -> list[int]:
    return frame_blocks([Path("val") / f"{name}.jpg" for name in names], least).of_frame.tolist()


def numbered(prefix: str, numbers) -> list[str]:
    return [f"{prefix}{number:05d}" for number in numbers]


def test_long_flight_is_cut_into_equal_stretches_of_neighbours():
    found = blocks(numbered("road-", range(2 * STRETCH + 2)))
    assert found == [0] * 14 + [1] * 14 + [2] * 14
    assert blocks(list(reversed(numbered("road-", range(30))))) == [0] * 15 + [1] * 15


def test_flights_are_the_blocks_where_there_are_enough():
    names = [name for flight in ("a", "b", "c") for name in numbered(flight, range(50))]
    paths = [Path(f"{name}.png") for name in names]
    by_flight, by_stretch = frame_blocks(paths, 3), frame_blocks(paths, 4)
    assert (by_flight.unit, by_stretch.unit) == ("flight", "stretch")
    assert by_flight.of_frame.tolist() == [0] * 50 + [1] * 50 + [2] * 50
    assert by_stretch.of_frame.max() + 1 == 9
    # A flight with nearly all objects leaves no three flights.
    objects = np.array([20] * 50 + [1] * 100)
    assert frame_blocks(paths, 3, objects).unit == "stretch"


def test_jump_of_the_counter_starts_another_flight():
    assert blocks(numbered("", [1, 3, 5, 7, 100, 102, 104])) == [0, 0, 0, 0, 1, 1, 1]
    assert blocks(numbered("", [0, 30, 60, 90])) == [0] * 4  # every 30th frame of a video


def test_prefixes_with_one_counter_are_one_sequence():
    """HIT-UAV's prefix changes with the camera's pitch, in the middle of a flight."""
    pitches = [(30, range(2784, 2794)), (40, range(2795, 2805)), (30, range(5960, 5970))]
    names = [n for pitch, own in pitches for n in numbered(f"1_120_{pitch}_0_", own)]
    assert blocks(names) == [0] * 20 + [1] * 10
    # Counters of their own, here with the same numbers.
    names = [n for flight in (1, 2) for n in numbered(f"DJI_{flight}_", range(10))]
    assert blocks(names) == [0] * 10 + [1] * 10


def test_mined_frames_belong_to_their_segment_whatever_the_camera():
    flight = "night-0123abcd"
    names = [f"{flight}-front-00002-000001", f"{flight}-down-00002-000900",
             f"{flight}-front-00007-000001", "night-0123abce-00002-000001"]  # fmt: skip
    assert blocks(names) == [0, 0, 1, 2]
    assert blocks(names, least=1.5) == [0, 0, 0, 1]


def test_tiles_of_a_frame_are_in_its_stretch():
    names = [f"DJI_0083_{number:04d}_q{q}" for number in (58, 219) for q in range(4)]
    assert blocks(names) == [0] * 8
    assert blocks(["lot_0001_t", "lot_0002", "lot_0003-a", "lot_0900"]) == [0, 0, 0, 1]


@pytest.mark.parametrize(
    "names", [["north", "south", "east"], ["a1", "b1", "c7"], ["9" * 40, "x"], ["é²", "-"]]
)
def test_names_that_tell_nothing_are_one_stretch(names):
    assert blocks(names) == [0] * len(names)


def test_single_frame_is_a_stretch():
    assert blocks(["road-001"]) == [0]
