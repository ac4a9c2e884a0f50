# SPDX-License-Identifier: AGPL-3.0-or-later
import numpy as np

from drone_kd_training.mining.student_and_teacher import fuse
from mining_flights import detections


def test_box_that_one_of_two_passes_misses_has_half_its_score():
    both, one = (10, 10, 30, 30, 0.8, 0), (50, 50, 60, 60, 0.8, 1)
    fused = fuse([detections(both, one), detections((12, 10, 32, 30, 0.8, 0))], 100, 100)
    np.testing.assert_allclose(fused.xyxy, [[11, 10, 31, 30], [50, 50, 60, 60]], atol=1e-4)
    np.testing.assert_allclose(fused.scores, [0.8, 0.4], atol=1e-6)
    assert fused.class_ids.tolist() == [0, 1]
    assert len(fuse([detections(), detections()], 100, 100)) == 0
    assert len(fuse([detections((5, 5, 5, 9, 0.9, 0)), detections()], 100, 100)) == 0  # no area
