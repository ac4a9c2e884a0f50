"""What a folder holds, to see whether anything in it was changed."""

from pathlib import Path


def folder_content(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Return when each file and folder was changed, and the bytes of the files."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *folder.rglob("*")]
    }
