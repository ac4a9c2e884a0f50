"""Atomic writes of files and folders, and content hashes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

_CHUNK = 1 << 20


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def atomic_file(path: Path, suffix: str = ".tmp") -> Iterator[Path]:
    """Yield a new empty file beside `path`; it replaces `path` when the block succeeds.

    A reader sees either the old or the complete new content, also after a power failure. A link
    at `path` is replaced, not followed. The mode follows the umask. The folder has to exist.
    `suffix` is that of the temporary file, for writers that choose a format by it. After any
    exception `path` is as it was and the temporary file is gone.
    """
    temporary = _unpredictable(path, suffix)
    temporary.open("xb").close()
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path, mode: int = 0o777) -> Iterator[Path]:
    """Yield a new folder beside `path`; it becomes `path` when the block succeeds.

    The folder appears with all its files. Unlike `atomic_file` this does not wait until they are
    on the disk: a power failure may still take the content of the newest ones. An empty folder at
    `path` is replaced, parents are made, and `mode` holds before the umask. OSError: `path` is a
    file or a folder with content, or cannot be written. After any exception it is as it was and
    the temporary folder is gone.
    """
    temporary = _unpredictable(path, ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.mkdir(mode=mode)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; see `atomic_file`."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, and make its parent folders; see `atomic_file`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.encode())


def _unpredictable(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{suffix}")


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
