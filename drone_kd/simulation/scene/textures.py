"""Colours and textures of the ground, of roofs, facades and tree crowns."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from drone_kd.simulation.scene.shapes import TILE_PX, random_sign

# An image and smaller copies, each half the size of the one before.
Pyramid = tuple[np.ndarray, ...]

# Side of a tree's texture, and the number of pyramid levels, each half the size of the one before.
TREE_PX, TREE_LEVELS = 72, 4

# Textures of each kind in a world, sampled from larger banks.
TREES, ROOFS, FACADES = 6, 8, 4

_ROOF_PX = 160

# Ground materials: RGB of dark, middle and light places.
MATERIALS = {
    "grass": ((44, 62, 30), (80, 98, 50), (122, 128, 78)),
    "meadow": ((84, 92, 48), (130, 126, 76), (172, 158, 108)),
    "crop": ((52, 78, 34), (92, 116, 52), (140, 150, 82)),
    "soil": ((88, 68, 50), (124, 98, 72), (158, 132, 102)),
    "dirt": ((110, 92, 74), (150, 130, 106), (186, 168, 142)),
    "road": ((88, 88, 88), (112, 111, 109), (134, 132, 128)),
    "lot": ((74, 75, 77), (104, 104, 104), (136, 134, 130)),
    "pavement": ((122, 118, 112), (154, 149, 142), (180, 175, 168)),
    "brick": ((112, 74, 60), (150, 104, 88), (178, 138, 120)),
    "concrete": ((128, 126, 120), (166, 163, 156), (196, 192, 184)),
    "water": ((30, 46, 44), (46, 66, 62), (74, 92, 86)),
    "scrub": ((24, 38, 20), (46, 62, 32), (84, 96, 54)),
    "gravel": ((126, 118, 108), (160, 152, 140), (196, 188, 176)),
    "court": ((40, 90, 74), (60, 112, 92), (84, 130, 110)),
    "track": ((128, 62, 48), (156, 80, 62), (178, 104, 84)),
    "pool": ((50, 140, 160), (84, 176, 192), (150, 212, 220)),
}

# RGB of leaves with their shares, of roofs and of walls.
_GREENS = ((72, 96, 42), (52, 76, 38), (96, 108, 52), (44, 62, 40), (120, 104, 50), (84, 66, 52))
_GREEN_SHARES = (0.3, 0.26, 0.18, 0.14, 0.07, 0.05)
_ROOFS = (
    *((150, 78, 56), (112, 66, 54), (96, 96, 98), (150, 148, 146)),
    *((184, 182, 178), (72, 74, 80), (128, 118, 104)),
)
_WALLS = ((176, 162, 140), (190, 188, 182), (150, 92, 70), (128, 126, 122), (206, 196, 170))

MATERIAL_IDS = {name: i for i, name in enumerate(MATERIALS)}


@lru_cache(maxsize=1)
def _noise_bank() -> tuple[np.ndarray, np.ndarray]:
    """Coarse and fine tileable noise, uint8 (TILE_PX, TILE_PX), with a flat histogram."""
    rng = np.random.default_rng(0)
    bank = []
    for falloff in (0.75, 0.08):
        total: np.ndarray = np.zeros((TILE_PX, TILE_PX), np.float32)
        for cells in (8, 16, 32, 64, 128, 256, 512, 1024, 2048):
            grid = np.pad(rng.standard_normal((cells, cells), np.float32), 2, mode="wrap")
            scale = TILE_PX // cells
            large = cv2.resize(grid, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
            margin = 2 * scale
            total += cells**-falloff * large[margin : margin + TILE_PX, margin : margin + TILE_PX]
        grey = np.empty(total.shape, np.uint8)
        cv2.normalize(total, grey, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
        bank.append(np.asarray(cv2.equalizeHist(grey)))
    return bank[0], bank[1]


def ground_noise(rng: np.random.Generator) -> np.ndarray:
    """Return a random mixture of coarse and fine noise: uint8 (TILE_PX, TILE_PX)."""
    coarse, fine = (
        np.roll(noise[:: random_sign(rng)], tuple(rng.integers(0, TILE_PX, 2)), (0, 1))
        for noise in _noise_bank()
    )
    share = rng.uniform(0.3, 0.7)
    return np.asarray(cv2.addWeighted(coarse, share, fine, 1 - share, 0))


def ground_palette(rng: np.random.Generator) -> np.ndarray:
    """Return 16 shades of each material: uint8 (256, 1, 3) BGR."""
    season = rng.normal(0, 0.025, 3)
    palette = np.empty((16, 16, 3))
    for i, rgb in enumerate(MATERIALS.values()):
        stops = np.array(rgb, dtype=float) * rng.uniform(0.72, 1.15)
        # Contrast of light and dark places.
        stops = stops[1] + (stops - stops[1]) * rng.uniform(0.35, 1.2)
        stops = stops * (1 + season + rng.normal(0, 0.015, 3))
        for channel in range(3):
            palette[i, :, channel] = np.interp(np.arange(16), (2, 7.5, 13), stops[:, channel])
    return np.clip(palette, 4, 250).astype(np.uint8).reshape(256, 1, 3)[..., ::-1].copy()


def _patch(rng: np.random.Generator, height: int, width: int, fine: bool) -> np.ndarray:
    """Return a random piece of noise: float32 (height, width) in [-1, 1]."""
    noise = _noise_bank()[int(fine)]
    y, x = rng.integers(0, TILE_PX - height), rng.integers(0, TILE_PX - width)
    return noise[y : y + height, x : x + width].astype(np.float32) / 127.5 - 1


def four_channels(image: np.ndarray) -> np.ndarray:
    """Add an opaque channel to an image (h, w, 3): OpenCV warps four channels in a third."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2BGRA))


def pyramid(image: np.ndarray, levels: int | None = None) -> Pyramid:
    """Return the pyramid of an image uint8 (h, w, C); without `levels`, to one or two pixels."""
    images = [image]
    while len(images) != levels and min(images[-1].shape[:2]) > 1:
        half = cv2.resize(images[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        images.append(np.asarray(half))
    return tuple(images)


def _tree_texture(rng: np.random.Generator) -> Pyramid:
    """Render a tree crown from above, BGRA, with the sun to its right."""
    y, x = np.mgrid[-1 : 1 : TREE_PX * 1j, -1 : 1 : TREE_PX * 1j].astype(np.float32)
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    outline = 0.86 + sum(
        rng.normal(0, 0.05) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 5, 8)
    )
    leaves = _patch(rng, TREE_PX, TREE_PX, fine=True)
    clumps = np.asarray(cv2.GaussianBlur(leaves, (0, 0), 2.5))
    clumps = clumps / np.abs(clumps).max()
    inside = radius + 0.12 * clumps + 0.05 * leaves < outline
    height = np.sqrt(np.clip(1 - (radius / outline) ** 2, 0.05, 1))
    slant = 0.45 * np.cos(np.radians(rng.uniform(28, 68)))
    light = 0.5 * height + slant * x + 0.3 * clumps + 0.13 * leaves + 0.22
    leaf = np.array(_GREENS[rng.choice(6, p=_GREEN_SHARES)], dtype=np.float32)
    green = leaf * rng.uniform(0.85, 1.45) + rng.normal(0, 5, 3)
    colour = np.clip(light, 0.2, 1.5)[..., None] * green
    alpha = np.where(inside, 255, 0)
    texture = np.dstack([np.clip(colour[..., ::-1], 0, 255), alpha])
    return pyramid(texture.astype(np.uint8))


def _roof_texture(rng: np.random.Generator) -> Pyramid:
    """Render a roof of tiles, sheets or gravel, with skylights, vents and solar panels."""
    n = _ROOF_PX
    base = np.array(_ROOFS[rng.integers(len(_ROOFS))]) * rng.uniform(0.75, 1.2)
    shade = 0.12 * _patch(rng, n, n, True) + 0.14 * _patch(rng, n, n, False)
    course = np.sin(np.arange(n) * 2 * np.pi / rng.uniform(4, 14)) * rng.uniform(0, 0.16)
    shade += course[:, None] if rng.random() < 0.5 else course
    roof = (base * (1 + shade)[..., None])[..., ::-1].clip(0, 250).astype(np.uint8)
    if rng.random() < 0.5:
        edge = tuple(map(float, (base * rng.uniform(0.6, 1.5)).clip(0, 240)[::-1]))
        cv2.rectangle(roof, (0, 0), (n - 1, n - 1), edge, int(rng.integers(2, 7)))
    for _ in range(rng.poisson(5)):
        x, y = rng.integers(8, n - 30, 2).tolist()
        w, h = rng.integers(6, 26, 2).tolist()
        grey = ((40, 45, 52), (220, 222, 224), (150, 152, 154), (96, 60, 40))[rng.integers(4)]
        cv2.rectangle(roof, (x + 2, y + 3), (x + w + 2, y + h + 3), (40, 40, 42), -1)
        cv2.rectangle(roof, (x, y), (x + w, y + h), grey, -1)
    if rng.random() < 0.2:
        x, y = rng.integers(10, n // 2, 2).tolist()
        for i in range(4):
            for j in range(3):
                corner = x + 18 * i, y + 26 * j
                cv2.rectangle(roof, corner, (corner[0] + 16, corner[1] + 24), (62, 40, 28), -1)
    return pyramid(four_channels(roof))


def _facade_texture(rng: np.random.Generator, floors: int) -> Pyramid:
    """Render a wall with rows of windows; the top of the texture is at the eaves."""
    base = np.array(_WALLS[rng.integers(len(_WALLS))]) * rng.uniform(0.7, 1.1)
    wall = base * (1 + 0.1 * _patch(rng, 64, 128, False))[..., None]
    wall = wall[..., ::-1].clip(0, 250).astype(np.uint8)
    columns = int(floors * rng.uniform(1.4, 2.6))
    step_x, step_y = 128 / columns, 64 / floors
    share_x, share_y = rng.uniform(0.3, 0.75), rng.uniform(0.35, 0.6)
    for column in range(columns):
        for floor in range(floors):
            if rng.random() < 0.12:
                continue
            x, y = round((column + 0.5 - share_x / 2) * step_x), round((floor + 0.25) * step_y)
            glass = tuple(map(float, rng.uniform(0.6, 1.6) * np.array((66, 58, 50))))
            corner = x + round(share_x * step_x), y + round(share_y * step_y)
            cv2.rectangle(wall, (x, y), corner, glass, -1)
    return pyramid(four_channels(wall))


@lru_cache(maxsize=1)
def tree_bank() -> list[Pyramid]:
    """Return all tree textures."""
    rng = np.random.default_rng(3)
    return [_tree_texture(rng) for _ in range(150)]


@lru_cache(maxsize=1)
def roof_bank() -> list[Pyramid]:
    """Return all roof textures."""
    rng = np.random.default_rng(1)
    return [_roof_texture(rng) for _ in range(72)]


@lru_cache(maxsize=2)
def facade_bank(floors: int) -> list[Pyramid]:
    """Return all facade textures with this number of floors."""
    rng = np.random.default_rng((2, floors))
    return [_facade_texture(rng, floors) for _ in range(30)]


def sample(rng: np.random.Generator, bank: list[Pyramid], count: int) -> tuple[Pyramid, ...]:
    """Return `count` different textures of a bank."""
    return tuple(bank[i] for i in rng.choice(len(bank), count, replace=False))
