"""Harmless stand-in for the code that a hostile pickle runs."""

from pathlib import Path


class TouchFile:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        """Let the unpickler call `Path.touch`."""
        return Path.touch, (self.path,)
