import numpy as np
import pytest

from drone_kd.simulation.scoring.flight_record import Leg, Predictions, Truth
from drone_kd.simulation.scoring.matching import clock_offset_ns, match, moments

A, B = [0, 0, 10, 10], [20, 0, 30, 10]


def truth(*boxes, names=None):
    names = names or ("car",) * len(boxes)
    return Truth(np.array(boxes, np.float32).reshape(-1, 4), tuple(names), ("",) * len(boxes))


def predictions(*boxes, scores=None, names=None, stamp=0, at=0):
    scores = np.array(scores or [0.9] * len(boxes), np.float32)
    xyxy = np.array(boxes, np.float32).reshape(-1, 4)
    return Predictions(stamp, at, xyxy, scores, tuple(names or ("car",) * len(boxes)))


@pytest.mark.parametrize(
    ("there", "said", "found", "alarms", "wrong"),
    [
        (truth(A, B), predictions(B), [False, True], [False], [False]),
        # Another class is a miss, and no false alarm.
        (truth(A), predictions(A, names=["bus"]), [False], [False], [True]),
        # Two boxes on one object: the better one counts, the other is a false alarm.
        (truth(A), predictions(A, A, scores=[0.4, 0.8]), [True], [True, False], [False, False]),
        # Below the threshold nothing counts.
        (truth(A), predictions(A, scores=[0.2]), [False], [False], [False]),
        # IoU 0.5 is enough, less is not.
        (truth(A), predictions([0, 0, 10, 5]), [True], [False], [False]),
        (truth(A), predictions([0, 0, 10, 4.9]), [False], [True], [False]),
        (truth(), predictions(A), [], [True], [False]),
        (truth(A), predictions(), [False], [], []),
    ],
)
def test_boxes_are_matched(there, said, found, alarms, wrong):
    matched = match(there, said, confidence=0.25)
    assert matched.found.tolist() == found and matched.false_alarm.tolist() == alarms
    assert matched.wrong_class.tolist() == wrong
    assert sum(found) == matched.hit.sum()


@pytest.mark.parametrize("name", ["car", "bus"])
@pytest.mark.parametrize("box", [A, [0, 0, 6, 6], [-4, 0, 10, 10], [5, 0, 14, 10]])
def test_a_box_on_an_ignored_object_is_neither_hit_nor_alarm(name, box):
    there = Truth(truth(A, B).xyxy, ("car", "car"), ("", ""), np.array([True, False]))
    matched = match(there, predictions(box, names=[name]), 0.25)
    assert not any(matched.found) and not any(matched.false_alarm | matched.wrong_class)
    # Beside it, it is an alarm.
    assert match(there, predictions([9, 0, 16, 10]), 0.25).false_alarm.all()


def test_predictions_count_from_arrival_until_the_next_arrive():
    leg = Leg(
        truths={t: truth(A) for t in (0, 100, 200, 300, 400)},
        truths_at={t: t for t in (0, 100, 200, 300, 400)},
        # The second overtakes the first; the third arrives exactly at a moment.
        predictions=[
            predictions(A, stamp=0, at=190),
            predictions(A, stamp=100, at=150),
            predictions(A, stamp=200, at=300),
        ],
    )
    rows = [(m.stamp_ns, m.own is not None, m.latest, m.fresh) for m in moments(leg)]
    assert [(t, own, held and held.stamp_ns, fresh) for t, own, held, fresh in rows] == [
        (0, True, None, False),
        (100, True, None, False),
        (200, True, 0, True),
        (300, False, 200, True),
        (400, False, 200, False),
    ]


def test_clocks_that_differ_by_less_than_half_a_second_are_one():
    def leg(late):
        return Leg(truths_at={k: k + late + k % 3 for k in range(9)})

    assert clock_offset_ns(leg(4 * 10**8)) == 0
    assert clock_offset_ns(leg(7 * 10**9)) == 7 * 10**9
    assert clock_offset_ns(leg(-7 * 10**9)) == -7 * 10**9
