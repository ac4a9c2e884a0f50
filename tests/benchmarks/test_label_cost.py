# SPDX-License-Identifier: AGPL-3.0-or-later
import argparse

import pytest

from benchmarks.label_cost import (
    CLICKED_BOX_S,
    FRAME_S,
    LabelCost,
    add_options,
    format_ratio,
    read_options,
)


def test_minutes_are_of_frames_and_boxes():
    assert LabelCost(box_s=10, frame_s=5).minutes(frames=6, boxes=9) == pytest.approx(2)
    assert LabelCost().minutes(60, 0) == pytest.approx(FRAME_S)
    assert LabelCost().minutes(0, 60) == pytest.approx(CLICKED_BOX_S)


def test_cost_is_an_option():
    parser = argparse.ArgumentParser()
    add_options(parser)
    assert read_options(parser.parse_args([])) == LabelCost()
    given = parser.parse_args(["--box-seconds", "35", "--frame-seconds", "0"])
    assert read_options(given) == LabelCost(35, 0)


def test_ratio_has_an_interval_where_pairs_give_one():
    assert format_ratio([20, 22, 24], [10, 11, 12]) == "2.00 [2.00, 2.00]"
    assert format_ratio([3], [2]) == "1.50"
    low, high = (float(x) for x in format_ratio([21, 21, 25], [10, 11, 12])[6:-1].split(", "))
    assert low < 67 / 33 < high
    assert format_ratio([1, 2], [0, 0]) == format_ratio([], []) == "-"
