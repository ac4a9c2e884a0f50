from dataclasses import replace

import numpy as np
import pytest

from drone_kd.simulation.scene.sensor import apply_sensor, sample_conditions

CLEAN = replace(
    sample_conditions(np.random.default_rng(0)),
    gain=(1.0, 1.0, 1.0),
    gamma=1.0,
    haze=0.0,
    blur_px=0.0,
    motion_px=0.0,
    detail=1.0,
    noise=0.0,
    quality=None,
)


def expose(image, seed=0, **changes):
    return apply_sensor(image.copy(), replace(CLEAN, **changes), np.random.default_rng(seed))


@pytest.mark.parametrize("size", [(64, 96), (1100, 2100)])
def test_noise_has_its_strength_in_images_of_any_size(size):
    grey = np.full((*size, 3), 100, np.uint8)
    noisy = expose(grey, noise=6.0).astype(float)
    assert noisy.std() == pytest.approx(6, rel=0.15)
    assert abs(noisy.mean() - 100) < 0.5
    # In each corner, too: the noise is put together of pieces.
    h, w = size
    for part in (noisy[: h // 4, : w // 4], noisy[-h // 4 :, -w // 4 :]):
        assert part.std() == pytest.approx(6, rel=0.25)
    assert (noisy != expose(grey, seed=1, noise=6.0)).any()
