import numpy as np
import pytest

from drone_kd.tracking.homography import exponential, fraction, jacobians, logarithm, warp_points

POINTS = np.array([[0.0, 0.0], [640.0, 360.0], [1279.0, 10.0], [30.0, 700.0]])
TURN = np.array([[0.995, -0.0998, 70.0], [0.0998, 0.995, -60.0], [0.0, 0.0, 1.0]])
OBLIQUE = np.array([[1.02, 0.01, 20.0], [-0.01, 1.04, 35.0], [1e-6, 4e-5, 1.0]])
SHIFT = np.array([[1.0, 0.0, 40.0], [0.0, 1.0, -25.0], [0.0, 0.0, 1.0]])
MOTIONS = pytest.mark.parametrize("motion", [TURN, OBLIQUE, SHIFT, np.eye(3)])


@MOTIONS
def test_two_halves_make_the_whole(motion):
    half = fraction(motion, 0.5)
    twice = warp_points(half, warp_points(half, POINTS))
    assert np.allclose(twice, warp_points(motion, POINTS), atol=1e-6)
    assert np.allclose(
        warp_points(fraction(motion, 2), POINTS), warp_points(motion @ motion, POINTS), atol=1e-6
    )


def test_half_of_a_shift_is_half_as_far():
    assert np.allclose(warp_points(fraction(SHIFT, 0.5), POINTS), POINTS + (20, -12.5))


@MOTIONS
def test_exponential_undoes_the_logarithm(motion):
    log = logarithm(motion)
    assert log is not None
    assert np.allclose(exponential(log), motion / motion[2, 2], atol=1e-9)


def test_half_a_turn_has_no_fractions():
    assert logarithm(np.diag([-1.0, -1.0, 1.0])) is None
    assert np.array_equal(fraction(np.diag([-1.0, -1.0, 1.0]), 0.1), np.eye(3))


@MOTIONS
def test_jacobians_are_the_differences_of_points(motion):
    step = 1e-4
    expected = np.stack(
        [
            (warp_points(motion, POINTS + offset) - warp_points(motion, POINTS - offset))
            / step
            / 2
            for offset in (np.array([step, 0]), np.array([0, step]))
        ],
        axis=2,
    )
    assert np.allclose(jacobians(motion, POINTS), expected, atol=1e-5)


def test_points_beyond_the_horizon_are_nan():
    motion = np.array([[1.0, 0, 0], [0, 1.0, 0], [0, -0.01, 1.0]])
    warped = warp_points(motion, np.array([[5.0, 50.0], [5.0, 100.0], [5.0, 200.0]]))
    assert np.isfinite(warped[0]).all()
    assert np.isnan(warped[1:]).all()
