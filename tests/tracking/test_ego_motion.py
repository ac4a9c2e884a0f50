from __future__ import annotations

import cv2
import numpy as np
import pytest

from drone_kd.tracking import EgoMotion, Quality
from drone_kd.tracking.homography import warp_points

GRID = np.array([[x, y] for x in (100.0, 640.0, 1180.0) for y in (80.0, 360.0, 640.0)])


def texture(seed: int = 0, width: int = 1280, height: int = 720) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width), np.float32)
    for scale in (4, 16, 64):
        coarse = rng.normal(0, 1, (height // scale + 2, width // scale + 2)).astype(np.float32)
        image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    grey = np.clip(128 + 40 * image, 0, 255).astype(np.uint8)
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)


def moved(image: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """Return the image after a motion; OpenCV counts pixels from their middle, boxes do not."""
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    matrix = np.linalg.inv(half) @ motion @ half
    size = image.shape[1], image.shape[0]
    return cv2.warpPerspective(image, matrix, size, borderMode=cv2.BORDER_REFLECT)


def about_middle(turn_deg: float, zoom: float) -> np.ndarray:
    return np.vstack([cv2.getRotationMatrix2D((640, 360), turn_deg, zoom), [0, 0, 1]])


@pytest.mark.parametrize(
    "motion",
    [
        np.eye(3),
        np.array([[1.0, 0, 41.3], [0, 1, -17.7], [0, 0, 1]]),
        about_middle(4.0, 1.0),
        about_middle(0.0, 1.05),
        np.array([[1.01, 0.004, 9.0], [-0.003, 1.02, 14.0], [2e-6, 3e-5, 1.0]]),
    ],
    ids=["still", "shift", "turn", "zoom", "oblique"],
)
def test_known_motion_is_measured_within_a_pixel(motion):
    image, ego = texture(), EgoMotion()
    ego.update(image, 0)
    found = ego.update(moved(image, motion), 100)
    assert found.quality is Quality.OK
    assert found.stamp_ns == 100
    assert found.inliers > 60
    assert found.residual_px < 1.5
    error = warp_points(found.homography, GRID) - warp_points(motion, GRID)
    assert np.abs(error).max() < 1


def test_moving_objects_are_not_taken_for_the_camera():
    image, ego = texture(), EgoMotion()
    ego.update(image, 0)
    after = moved(image, np.array([[1.0, 0, 10], [0, 1, 0], [0, 0, 1]]))
    after[100:350, 200:600] = image[115:365, 160:560]
    found = ego.update(after, 1)
    assert np.abs(warp_points(found.homography, GRID) - GRID - (10, 0)).max() < 1


def test_corners_are_renewed_while_the_camera_flies_on():
    image, ego = texture(1, 2600, 720), EgoMotion()
    qualities = [
        ego.update(np.ascontiguousarray(image[:, x : x + 1280]), x).quality
        for x in range(0, 1300, 60)
    ]
    assert qualities[0] is Quality.LOST
    assert {*qualities[1:]} == {Quality.OK}


@pytest.mark.parametrize("value", [0, 255, 90])
def test_frames_without_features_are_lost_and_recovered_from(value):
    image, ego = texture(), EgoMotion()
    ego.update(image, 0)
    plain = np.full_like(image, value)
    for stamp in (1, 2, 3):
        found = ego.update(plain, stamp)
        assert found.quality is Quality.LOST
        assert found.homography is None
    assert ego.update(image, 4).quality is Quality.LOST
    assert ego.update(image, 5).quality is Quality.OK


def test_cut_in_a_video_is_lost():
    ego = EgoMotion()
    ego.update(texture(1), 0)
    assert ego.update(texture(2), 1).quality is Quality.LOST
    assert ego.update(texture(2), 2).quality is Quality.OK


def test_noise_is_lost():
    rng, ego = np.random.default_rng(0), EgoMotion()
    for stamp in range(4):
        noise = rng.integers(0, 255, (360, 640, 3), dtype=np.uint8)
        assert ego.update(noise, stamp).quality is Quality.LOST


def test_other_size_is_lost_and_then_followed():
    image, ego = texture(), EgoMotion()
    ego.update(image, 0)
    small = np.ascontiguousarray(image[::2, ::2])
    assert ego.update(small, 1).quality is Quality.LOST
    assert ego.update(small, 2).quality is Quality.OK
    assert ego.update(small[..., 0].copy(), 3).quality is Quality.OK


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (3, 2), (40, 40)])
def test_tiny_frames_are_lost_without_an_error(shape):
    ego, rng = EgoMotion(), np.random.default_rng(0)
    for stamp in range(3):
        found = ego.update(rng.integers(0, 255, shape, dtype=np.uint8), stamp)
        assert found.quality is Quality.LOST


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_other_arrays_are_refused(image):
    with pytest.raises(ValueError, match=r"expected uint8 \(h, w, 3\) BGR"):
        EgoMotion().update(image, 0)


def test_same_frames_give_the_same_motion():
    images = [moved(texture(), about_middle(2.0 * n, 1.0)) for n in range(3)]
    runs = []
    for _ in range(2):
        ego = EgoMotion()
        runs.append([ego.update(image, n).homography for n, image in enumerate(images)][1:])
        cv2.setRNGSeed(99)
    assert np.array_equal(runs[0], runs[1])
