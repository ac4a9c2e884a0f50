# SPDX-License-Identifier: AGPL-3.0-or-later
"""Lock files, so that several processes share the runs of an experiment."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Of file systems without locks: everybody has them there.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def claim(path: Path, wait: bool = False) -> Iterator[bool]:
    """Lock a file, and yield whether this process has the lock; its folder is made.

    The operating system releases the lock of a process that ends in any way, so no lock is ever
    stale. The file stays: without it two processes could lock different files of one name.

    Args:
        path: the lock file; no link.
        wait: until another process releases it; else the result is False.

    Raises:
        OSError: the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            yield True
            return
        try:
            yield True
        finally:
            # Also for data loaders that were forked meanwhile, and share the descriptor.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)
