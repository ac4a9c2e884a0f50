import numpy as np
import pytest

from drone_kd.simulation.scoring.counts import TimedLeg, count_legs
from drone_kd.simulation.scoring.first_detection import kaplan_meier
from drone_kd.simulation.scoring.flight_record import Flight
from drone_kd.simulation.scoring.matching import grid_moments
from drone_kd.simulation.scoring.tracks import TrueTracks

SECONDS = 10.0
WIDTH_PX = 60.0
SPEEDS_PX_S = (80.0, 130.0, 210.0, 340.0, 550.0)


def streaming(flight):
    (leg,) = flight.legs
    timed = TimedLeg(list(grid_moments(leg, TrueTracks(leg))), TrueTracks(leg))
    return count_legs([timed], lambda m: m.latest, lambda m: m.fresh, 0.25, SECONDS, True)


def boxes(t_s, number):
    """Cars in rows of their own, each at its speed; `number(k)` is the second value of row k."""
    return [
        ["car", number(k), v * t_s, 100.0 * k, v * t_s + WIDTH_PX, 100.0 * k + 50]
        for k, v in enumerate(SPEEDS_PX_S)
    ]


def perfect_flight(latency_s, rate_hz):
    flight, results = Flight(), []
    for n in range(int(SECONDS * rate_hz) + 1):
        t_s = n / rate_hz
        stamp = int(t_s * 1e9)
        flight.add({"truth": stamp, "at": stamp, "boxes": boxes(t_s, str)})
        found = {"result": stamp, "boxes": boxes(t_s, lambda _: 0.9)}
        results.append({**found, "at": stamp + int(latency_s * 1e9)})
    for event in results:
        flight.add(event)
    return flight


@pytest.mark.parametrize("rate_hz", [4.7, 9.7, 29.3])
@pytest.mark.parametrize("latency_s", np.linspace(0.004, 0.31, 10).round(3).tolist())
def test_recall_of_a_perfect_detector_is_geometry(rate_hz, latency_s):
    """The recall of boxes of constant speed that arrive with a constant latency.

    A box of width w that moves by s along it has an IoU of (w - s) / (w + s) with itself, at least
    1/2 up to s = w / 3. The age of the newest boxes is uniform between the latency d and
    d + 1/rate, so an object of speed v is found for a share of ((w / 3v) - d) * rate of the time,
    cut to 0 and 1. In the first d seconds there are no boxes. The rates share no phase with the
    grid.
    """
    lasting_s = WIDTH_PX / 3 / np.array(SPEEDS_PX_S)
    share = np.clip((lasting_s - latency_s) * rate_hz, 0, 1).mean()
    length_s = int(SECONDS * rate_hz) / rate_hz
    expected = share * (1 - latency_s / length_s)
    found = streaming(perfect_flight(latency_s, rate_hz))
    assert found["recall"] == pytest.approx(expected, abs=0.01)
    # Its boxes are late, never invented.
    assert found["false_alarms_per_minute"] == 0 == found["wrong_class_per_minute"]
    stale = len(SPEEDS_PX_S) * (1 - share)
    assert found["stale_boxes"] == pytest.approx(stale, abs=0.01 * len(SPEEDS_PX_S))


def test_kinds_of_boxes_that_find_nothing():
    flight = Flight()
    for stamp in range(0, 31 * 10**8, 10**8):
        flight.add({"truth": stamp, "at": stamp, "boxes": [["car", "1", 0, 0, 40, 40]]})
        rows = [["van", 0.9, 0, 0, 40, 40], ["car", 0.8, 300, 0, 340, 40]]
        flight.add({"result": stamp, "at": stamp, "boxes": rows})
    found = streaming(flight)
    per_minute = 31 * 60 / SECONDS
    assert found["false_alarms_per_minute"] == found["wrong_class_per_minute"] == per_minute
    assert found["stale_boxes"] == found["recall"] == 0
    assert found["first_detection_s"] == {
        "p50": None,
        "p95": None,
        "p99": None,
        "tracks": 1,
        "never": 1,
    }


def test_kaplan_meier_counts_objects_that_left_undetected():
    # Freireich et al. (1963), 6-MP arm, in weeks: the median of remission is 23.
    weeks = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
    ended = [1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    found = kaplan_meier([float(w) for w in weeks], [bool(e) for e in ended])
    assert found == {"p50": 23.0, "p95": None, "p99": None}
    assert kaplan_meier([1.0, 2.0, 3.0], [True] * 3) == {"p50": 2.0, "p95": 3.0, "p99": 3.0}
    assert kaplan_meier([], []) == {"p50": None, "p95": None, "p99": None}
