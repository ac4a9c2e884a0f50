import numpy as np

from drone_kd.core.detections import Detections
from drone_kd.tracking import Motion, Quality, Tracker, Trails

PAN = np.array([[1.0, 0, 10.0], [0, 1, 0], [0, 0, 1]])


def fly(frames, motions):
    tracker, trails = Tracker(1280, 720), Trails()
    for n in range(frames):
        motion = motions(n)
        tracker.add_motion(motion)
        x = 100.0 + 10 * n
        box = np.array([[x, 50, x + 20, 70]], np.float32)
        tracker.update(motion.stamp_ns, Detections(box, np.ones(1, np.float32), np.zeros(1, int)))
        (trail,) = trails.update(motion, tracker.predict(motion.stamp_ns))
    return trail


def test_trail_of_a_parked_car_stays_in_place_under_a_moving_camera():
    trail = fly(60, lambda n: Motion(n * 10**8, PAN))
    assert trail.shape == (40, 2)
    assert np.abs(trail - (100 + 590 + 10, 60)).max() < 1


def test_trail_ends_where_the_motion_is_lost():
    trail = fly(9, lambda n: Motion(n * 10**8, *((None, Quality.LOST) if n == 6 else (PAN,))))
    assert len(trail) == 3
