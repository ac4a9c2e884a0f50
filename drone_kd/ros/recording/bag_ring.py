"""Ring of rosbag2 bags: bounded total size, the oldest bag is deleted first."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from drone_kd.files import sync
from drone_kd.ros.recording.message_definitions import MessageType

if TYPE_CHECKING:
    from rosbags.interfaces import Connection
    from rosbags.rosbag2 import Writer

# A bag ends at this share of the budget or after this time: a crash loses no more than that.
_BAGS = 8
_BAG_SECONDS = 60.0
# Overhead of a bag (definitions, twice, and index) and of each message.
_BAG_BYTES = 65536
_MESSAGE_BYTES = 128
# Disk space left free for others and for finishing a bag.
_RESERVE_BYTES = 64 * 2**20
_TIME = "%Y%m%dT%H%M%SZ"
_GONE = (FileNotFoundError, NotADirectoryError)


class Message(NamedTuple):
    """A message for a bag."""

    topic: str  # its full name
    type: MessageType
    data: bytes  # CDR


class BagRing:
    """Writes messages to rosbag2 MCAP bags that never exceed a total size.

    Each bag is a folder PREFIX-NUMBER-TIME. Only a finished bag has a metadata.yaml; one without
    is being written, or was when the program was killed.

    Links and what belongs to another user are neither counted nor deleted.

    Args:
        folder: holds the bags; other files in it are not touched.
        prefix: of this writer's bags.
        budget_bytes: maximum size of all bags together.
        private: only this user can read the bags; else, whoever the umask allows.
        owner: user id of the bags on this file system; None: that of this process.
    """

    def __init__(
        self,
        folder: Path,
        prefix: str,
        budget_bytes: int,
        *,
        private: bool = True,
        owner: int | None = None,
    ) -> None:
        self._folder = folder
        self._owner = os.geteuid() if owner is None else owner
        self._private = private
        self._prefix = prefix
        self._budget = budget_bytes
        self._limit = budget_bytes // _BAGS
        self._writer: Writer | None = None  # of the open bag
        self._size, self._opened = 0, 0.0  # estimated bytes; `monotonic` seconds
        self._connections: dict[str, Connection] = {}

    def write(self, stamp_ns: int, messages: Sequence[Message]) -> int:
        """Write messages that belong together into one bag; return their size in bytes.

        Raises:
            OSError: the disk is full or fails.
            ValueError: they exceed the budget.
        """
        size = sum(len(message.data) + _MESSAGE_BYTES for message in messages)
        if size + _BAG_BYTES > self._budget:
            raise ValueError(
                f"expected frames that fit into the budget of {self._budget / 1e6:.0f} MB, got "
                f"one of {size / 1e6:.1f} MB: raise record_budget_mb"
            )
        free = shutil.disk_usage(self._folder).free
        if free < size + _RESERVE_BYTES:
            raise OSError(
                errno.ENOSPC, f"only {free / 1e6:.0f} MB are left on the disk", str(self._folder)
            )
        if self._writer is not None and self._size + size > self._limit:
            self.finish()
        if self._writer is None:
            self._writer = self._open(max(self._limit, size + _BAG_BYTES))
        for topic, kind, data in messages:
            if topic not in self._connections:
                self._connections[topic] = self._writer.add_connection(
                    topic, kind.name, msgdef=kind.definition, rihs01=kind.digest
                )
            self._writer.write(self._connections[topic], stamp_ns, data)
        self._size += size
        return size

    def finish_old(self) -> None:
        """Finish a bag that has been open for a minute; see `finish`."""
        if monotonic() - self._opened > _BAG_SECONDS:
            self.finish()

    def finish(self) -> None:
        """Finish the open bag, if any, so that it survives a power cut.

        Raises:
            OSError: it could not be finished and has no metadata.yaml.
        """
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            writer.close()
            if self._private:
                with contextlib.suppress(PermissionError):  # of a file system without modes
                    (writer.path / "metadata.yaml").chmod(0o600)
            for path in (*writer.path.iterdir(), writer.path, self._folder):
                sync(path)
        except BaseException:
            with contextlib.suppress(OSError):
                writer.abort()
            raise

    def _open(self, room: int) -> Writer:
        """Open a bag after deleting so many that `room` bytes fit into the budget."""
        from rosbags.rosbag2 import StoragePlugin, Writer  # deferred: only bags need it

        number = self._make_room(room) + 1
        now = datetime.now(timezone.utc)
        while os.path.lexists(path := self._folder / f"{self._prefix}-{number:06d}-{now:{_TIME}}"):
            number += 1
        # Humble cannot read the metadata of version 9; all since can read 8.
        writer = Writer(path, version=8, storage_plugin=StoragePlugin.MCAP)
        # rosbags makes folder and file, and must not let others in even for a moment. The umask is
        # that of all threads, so for that moment theirs are private, too.
        umask = os.umask(0o077) if self._private else None
        try:
            writer.open()
        finally:
            if umask is not None:
                os.umask(umask)
        self._size, self._opened, self._connections = _BAG_BYTES, monotonic(), {}
        return writer

    def _make_room(self, room: int) -> int:
        """Delete the oldest bags until `room` bytes fit; return the number of the newest, or 0.

        By number: a clock may be wrong.
        """
        name = re.compile(rf"{re.escape(self._prefix)}-(\d{{6,18}})-\d{{8}}T\d{{6}}Z")
        with _opened(self._folder) as folder:
            found = ((name.fullmatch(entry), entry) for entry in _names(folder))
            bags = sorted((int(match[1]), entry) for match, entry in found if match)
            bags = [bag for bag in bags if _is_of(self._owner, folder, bag[1], stat.S_ISDIR)]
            sizes = [self._size_of(folder, entry) for _, entry in bags]
            excess = sum(sizes) + room - self._budget
            for (_, entry), size in zip(bags, sizes, strict=True):
                if excess <= 0:
                    break
                self._delete(folder, entry)
                excess -= size
        return bags[-1][0] if bags else 0

    def _files(self, bag: int) -> list[str]:
        """Return the names of the files that a recorder has written into an open bag."""
        names = (n for n in _names(bag) if n.endswith(".mcap") or "metadata.yaml" in n)
        return [name for name in names if _is_of(self._owner, bag, name, stat.S_ISREG)]

    def _size_of(self, folder: int, bag: str) -> int:
        """Return the size of a bag; 0 if it has become a link or is gone."""
        with contextlib.suppress(*_GONE), _opened(bag, folder) as opened:
            return sum(os.stat(name, dir_fd=opened).st_size for name in self._files(opened))
        return 0

    def _delete(self, folder: int, bag: str) -> None:
        """Delete a bag, and its folder unless it holds other files."""
        with contextlib.suppress(*_GONE), _opened(bag, folder) as opened:
            for name in self._files(opened):
                os.unlink(name, dir_fd=opened)
        with contextlib.suppress(OSError):
            os.rmdir(bag, dir_fd=folder)


@contextlib.contextmanager
def _opened(path: str | Path, folder: int | None = None) -> Iterator[int]:
    """Yield a descriptor of a folder; inside `folder` a link is not followed."""
    flags = os.O_DIRECTORY | os.O_CLOEXEC | (0 if folder is None else os.O_NOFOLLOW)
    descriptor = os.open(path, flags, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _is_of(owner: int, folder: int, name: str, is_kind: Callable[[int], bool]) -> bool:
    """Return whether an entry of an open folder is of a kind and an owner; a link is not."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return is_kind(status.st_mode) and status.st_uid == owner
