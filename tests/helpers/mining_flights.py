"""Short recorded flights for the tests of mining."""

from pathlib import Path

from recorded import image, scene, write_bag

SECOND = 10**9
NAMES = ("person", "car")  # classes of the student


def flight(path: Path, seconds: int = 60, per_place: int = 6, storage: str = "MCAP") -> Path:
    """One frame a second; another place every `per_place` seconds, where squares move."""
    return write_bag(
        path,
        (
            ("/camera/image", k * SECOND, image(scene(k // per_place, 3 * k), k * SECOND))
            for k in range(seconds)
        ),
        storage,
    )
