"""Short recorded flights and detections for the tests of mining."""

from pathlib import Path

import numpy as np

from drone_kd.core.detections import Detections
from recorded import image, scene, write_bag

SECOND = 10**9
NAMES = ("person", "car")  # classes of the student


def flight(path: Path, seconds: int = 60, per_place: int = 6, storage: str = "MCAP") -> Path:
    """Write a bag with one frame per second, another place every `per_place` seconds."""
    return write_bag(
        path,
        (
            ("/camera/image", k * SECOND, image(scene(k // per_place, 3 * k), k * SECOND))
            for k in range(seconds)
        ),
        storage,
    )


def detections(*rows: tuple[float, ...]) -> Detections:
    """Return detections of (x1, y1, x2, y2, score, class)."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))
