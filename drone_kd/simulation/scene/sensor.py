"""Sensor effects: haze, exposure, blur, noise and compression of a small camera."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from drone_kd.simulation.scene.shapes import tile_ranges

_BANK_PX = 1024
# Standard deviation of the noise bank around its mean of 128.
_BANK_SIGMA = 32.0


@dataclass(frozen=True)
class Conditions:
    """Imaging conditions of a flight: weather, exposure and optics."""

    gain: tuple[float, float, float]  # (B, G, R) exposure and white balance
    gamma: float  # exponent of the tone curve; 1 changes nothing
    haze: float  # share of the light that haze adds, in [0, 1]
    haze_bgr: tuple[float, float, float]
    blur_px: float  # standard deviation of the defocus
    motion_px: float  # length of the motion blur
    motion_rad: float  # its direction
    detail: float  # scale that the image is reduced to and enlarged from, in (0, 1]
    noise: float  # standard deviation in grey levels
    quality: int | None  # JPEG quality of an earlier compression; None: not compressed


def sample_conditions(rng: np.random.Generator) -> Conditions:
    """Sample conditions: most images are clear, each flaw is common, few images have all flaws."""
    warm = rng.normal(0, 0.045)
    exposure = np.exp(rng.normal(-0.08, 0.25))
    blue, green, red = exposure * np.array([1 - warm, 1 + rng.normal(0, 0.02), 1 + warm])
    grey = rng.uniform(140, 225)
    return Conditions(
        gain=(float(blue), float(green), float(red)),
        gamma=float(np.exp(rng.normal(0, 0.16))),
        haze=float(
            rng.choice((0.0, rng.uniform(0, 0.12), rng.uniform(0.1, 0.42)), p=(0.4, 0.4, 0.2))
        ),
        haze_bgr=(grey * rng.uniform(1, 1.08), grey, grey * rng.uniform(0.92, 1)),
        blur_px=float(rng.uniform(0.35, 0.75) if rng.random() < 0.7 else rng.uniform(0.75, 1.5)),
        motion_px=float(rng.uniform(2, 6)) if rng.random() < 0.18 else 0.0,
        motion_rad=float(rng.uniform(0, np.pi)),
        detail=float(rng.uniform(0.55, 0.9)) if rng.random() < 0.22 else 1.0,
        noise=float(rng.gamma(2.0, 1.8)),
        quality=int(rng.integers(35, 85)) if rng.random() < 0.25 else None,
    )


def apply_sensor(
    image: np.ndarray, conditions: Conditions, rng: np.random.Generator
) -> np.ndarray:
    """Return the uint8 (h, w, 3) BGR image as a camera takes it under these conditions."""
    height, width = image.shape[:2]
    if conditions.motion_px:
        kernel = _motion_kernel(conditions.motion_px, conditions.motion_rad)
        image = cv2.filter2D(image, -1, kernel)
    # Out to two standard deviations: OpenCV's own three take a third longer.
    side = 2 * round(2 * conditions.blur_px) + 1
    image = cv2.GaussianBlur(image, (side, side), conditions.blur_px)
    if conditions.detail < 1:
        scale = conditions.detail
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        image = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    # A copy by now: working in place costs a third less.
    planes = cv2.split(image)
    for plane, curve in zip(planes, _curves(conditions), strict=True):
        cv2.LUT(plane, curve, dst=plane)
    cv2.merge(planes, dst=image)
    if conditions.noise >= 0.5:
        _add_noise(image, conditions.noise, rng)
    if conditions.quality is not None:
        _, code = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, conditions.quality))
        decoded = cv2.imdecode(code, cv2.IMREAD_COLOR)
        assert decoded is not None  # encoded one line above
        return decoded
    return np.asarray(image)


def _curves(conditions: Conditions) -> np.ndarray:
    """Return the tone curve of each channel: uint8 (3, 256)."""
    light = (np.arange(256) / 255) ** conditions.gamma
    haze = conditions.haze * np.array(conditions.haze_bgr)
    hazy = (1 - conditions.haze) * 255 * light[:, None] + haze
    bright = hazy * conditions.gain
    # A soft shoulder compresses highlights before they clip.
    bright = np.where(bright > 200, 200 + 55 * np.tanh((bright - 200) / 75), bright)
    return np.clip(np.round(bright), 0, 255).astype(np.uint8).T.copy()


def _motion_kernel(length_px: float, angle_rad: float) -> np.ndarray:
    side = 2 * int(np.ceil(length_px / 2)) + 1
    kernel = np.zeros((side, side), np.float32)
    middle = side // 2
    half = np.array([np.cos(angle_rad), np.sin(angle_rad)]) * length_px / 2
    a, b = (np.round((middle + sign * half) * 16).astype(int).tolist() for sign in (-1, 1))
    cv2.line(kernel, a, b, 1.0, 1, cv2.LINE_8, 4)
    return kernel / kernel.sum()


def _add_noise(image: np.ndarray, sigma: float, rng: np.random.Generator) -> None:
    """Add a random part of endless copies of the noise bank to an image in place."""
    bank, share = _noise_bank(), sigma / _BANK_SIGMA
    y, x = rng.integers(_BANK_PX, size=2).tolist()
    height, width = image.shape[:2]
    for from_y, to_y in tile_ranges(y, y + height, _BANK_PX):
        for from_x, to_x in tile_ranges(x, x + width, _BANK_PX):
            piece = image[to_y, to_x]
            cv2.addWeighted(piece, 1, bank[from_y, from_x], share, -128 * share, dst=piece)


@lru_cache(maxsize=1)
def _noise_bank() -> np.ndarray:
    """uint8 (_BANK_PX, _BANK_PX, 3), grey and coloured grain around 128."""
    rng = np.random.default_rng(0)
    grey = rng.standard_normal((_BANK_PX, _BANK_PX, 1), np.float32)
    colour = rng.standard_normal((_BANK_PX, _BANK_PX, 3), np.float32)
    grain = 0.85 * grey + 0.53 * cv2.GaussianBlur(colour, (0, 0), 0.6) * 1.9
    return np.clip(128 + _BANK_SIGMA * grain, 0, 255).astype(np.uint8)
