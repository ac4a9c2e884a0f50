"""Content of a folder, to show that a command has changed nothing in it."""

import hashlib
import stat
from pathlib import Path


def contents(folder: Path) -> dict[str, tuple]:
    """Return mode, modification time and content or target of everything below a folder."""
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.lstat()
        content = ""
        if path.is_symlink():
            content = str(path.readlink())
        elif stat.S_ISREG(status.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path)] = (oct(status.st_mode), status.st_mtime_ns, content)
    return found
