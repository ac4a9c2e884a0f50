import numpy as np

from drone_kd_training.export.gate_outcomes import FAILS, HOLDS, NOT_ENOUGH, judge, outcome
from drone_kd_training.retraining.bootstrap import resample_blocks


def test_outcomes():
    """A mean of known values over 60 images: its interval decides."""
    weights = resample_blocks(np.arange(60), 100)

    def of(values: np.ndarray, per_image: int = 1) -> dict[str, float]:
        total, objects = values * per_image, np.full(60, per_image)
        count = 60 * per_image
        return judge(lambda w: (w @ total) / (w @ objects), weights, 0.05, count, 60)

    none, few, many = np.zeros(60), np.arange(60) % 12 == 0, np.arange(60) % 2 == 0
    assert outcome(of(none)) == NOT_ENOUGH  # 60 objects without a loss do not prove 5 %
    assert of(none)["missing"] == 13  # the rule of three: about 3 / 0.05
    assert outcome(of(none, 2)) == HOLDS
    assert outcome(of(few, 20)) == NOT_ENOUGH
    assert outcome(of(many)) == FAILS
    assert of(many)["low"] > of(many)["limit"] == 5


def test_image_counts_for_ten_objects():
    def nothing_lost(weights):
        return np.zeros(len(weights))

    gate = judge(nothing_lost, np.ones((9, 1), int), 0.05, count=300, images=1)
    assert outcome(gate) == NOT_ENOUGH and gate["missing"] == 63
    assert judge(nothing_lost, np.ones((9, 1), int), 0.05, 0, 0)["missing"] == 73


def test_box_that_alone_is_lost_is_no_failure():
    gate = judge(lambda w: np.ones(len(w)), np.ones((9, 1), int), 0.1, count=1, images=1)
    assert outcome(gate) == NOT_ENOUGH
    gate = judge(lambda w: np.ones(len(w)), np.ones((9, 1), int), 0.1, count=3, images=1)
    assert outcome(gate) == FAILS
