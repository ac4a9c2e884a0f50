import cv2
import numpy as np
import pytest

from drone_kd_training.data.crops import Crops, views
from drone_kd_training.data.near_duplicates import NearDuplicates

HEIGHT, WIDTH = 540, 960


def frame(seed: int) -> np.ndarray:
    """Return a BGR image with structure of all sizes, as the ground has."""
    rng = np.random.default_rng(seed)
    image = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for side in (240, 80, 30, 12, 4):
        coarse = rng.normal(0, 1, (HEIGHT // side + 2, WIDTH // side + 2, 3)).astype(np.float32)
        image += cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    return np.clip(120 + 15 * image, 0, 255).astype(np.uint8)


def road(seed: int) -> np.ndarray:
    """Return a frame of an empty road: vignetting and the noise of a sensor."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    light = 130 - 80 * ((x / WIDTH - 0.5) ** 2 + (y / HEIGHT - 0.5) ** 2) + 30 * x / WIDTH
    noise = np.random.default_rng(seed).normal(0, 4, (HEIGHT, WIDTH, 3))
    return np.clip(light[..., None] + noise, 0, 255).astype(np.uint8)


def encoded(image: np.ndarray, quality: int = 80, scale: float = 1.0) -> np.ndarray:
    """Return an image as it is after another resize and JPEG encoding."""
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(data, cv2.IMREAD_COLOR)


def index(tmp_path, images) -> NearDuplicates:
    paths = [tmp_path / f"{number}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        cv2.imwrite(str(path), image)
    return NearDuplicates(paths)


def tiles(image: np.ndarray, size: int = 400) -> list[np.ndarray]:
    return [window for _, window, _ in views(image, Crops(size)) if window is not None]


@pytest.mark.parametrize(("quality", "scale"), [(95, 1.0), (80, 0.9), (50, 0.5)])
def test_other_encodings_and_sizes_are_found(tmp_path, quality, scale):
    found = index(tmp_path, [frame(seed) for seed in range(4)])
    for seed in range(4):
        twin = found.find(encoded(frame(seed), quality, scale))
        assert twin is not None and twin.name == f"{seed}.png"


@pytest.mark.parametrize("offset", [0, 12, 37])
def test_tiles_of_a_frame_are_found(tmp_path, offset):
    found = index(tmp_path, [frame(seed) for seed in range(3)])
    for tile in tiles(frame(1)[offset:, offset:]):
        twin = found.find(encoded(tile))
        assert twin is not None and twin.name == "1.png"


@pytest.mark.parametrize("offset", [0, 12, 37])
def test_frames_of_a_tile_are_found(tmp_path, offset):
    found = index(tmp_path, tiles(frame(1)[offset:, offset:]))
    assert found.find(encoded(frame(1))) is not None
    assert found.find(frame(2)) is None


def test_other_frames_are_not_found(tmp_path):
    found = index(tmp_path, [frame(seed) for seed in range(5)])
    for seed in range(5, 10):
        assert found.find(frame(seed)) is None
        assert all(found.find(tile) is None for tile in tiles(frame(seed)))


def test_frames_of_an_empty_road_are_different(tmp_path):
    found = index(tmp_path, [road(0), *tiles(road(1))])
    assert found.find(road(2)) is None
    assert all(found.find(tile) is None for tile in tiles(road(3)))


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (500, 3), (40, 40)])
def test_tiny_images_are_compared_too(tmp_path, shape):
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    found = index(tmp_path, [image, frame(0)])
    assert found.find(frame(1)) is None
    assert found.find(frame(0)).name == "1.png"
    found.find(image)


def test_unreadable_images_are_left_out(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    assert NearDuplicates([]).find(frame(0)) is None
    assert NearDuplicates([tmp_path / "a.png"]).find(frame(0)) is None
