"""Bags of bounded size in a folder; the oldest makes room for the newest."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from drone_kd.ros.recording.message_definitions import MessageType

# A bag ends at this share of the budget, or after so long: a crash costs no more.
_BAGS = 8
_BAG_SECONDS = 60.0
# What a bag takes besides its messages: definitions, twice, and its index; and each message.
_BAG_BYTES = 65536
_MESSAGE_BYTES = 128
# So much is left to others on the disk, and for a bag to be finished.
_RESERVE_BYTES = 64 * 2**20


class Message(NamedTuple):
    """A message for a bag.

    Attributes:
        topic: its topic's full name.
        type: of the message.
        data: the message as CDR.
    """

    topic: str
    type: MessageType
    data: bytes


class BagRing:
    """Writes messages to bags, rosbag2 with MCAP, that never take more than a budget.

    Each bag is a folder PREFIX-NUMBER-TIME. Only a finished one has its metadata.yaml: another one
    is being written, or was when the program was killed.

    Args:
        folder: holds the bags; other files in it are left alone.
        prefix: of this writer's bags.
        budget_bytes: for all of them.
    """

    def __init__(self, folder: Path, prefix: str, budget_bytes: int) -> None:
        self._folder = folder
        self._prefix = prefix
        self._budget = budget_bytes
        self._limit = budget_bytes // _BAGS
        self._writer = None
        self._connections = {}
        self._size = 0
        self._began = 0.0

    def write(self, stamp_ns: int, messages: Sequence[Message]) -> int:
        """Write messages that belong together into one bag; returns their size in bytes.

        Raises:
            OSError: the disk is full, or does not work.
            ValueError: they are larger than the budget.
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
            self._open(max(self._limit, size + _BAG_BYTES))
        for message in messages:
            self._writer.write(self._connection(message), stamp_ns, message.data)
        self._size += size
        return size

    def finish_old(self) -> None:
        """Finish a bag that has been open for long.

        Raises:
            OSError: see `write`.
        """
        if self._writer is not None and monotonic() - self._began > _BAG_SECONDS:
            self.finish()

    def finish(self) -> None:
        """Finish the open bag, if there is one, so that it survives a power cut.

        Raises:
            OSError: it could not be finished, and has no metadata.yaml.
        """
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            writer.close()
            for path in (*writer.path.iterdir(), writer.path, self._folder):
                _sync(path)
        except BaseException:
            with contextlib.suppress(OSError):
                writer.abort()
            raise

    def _open(self, room: int) -> None:
        from rosbags.rosbag2 import StoragePlugin, Writer  # deferred: only bags need it

        bags = _bags_of(self._folder, self._prefix)
        number = max(bags, default=(0, None))[0] + 1
        sizes = [_size(path) for _, path in bags]
        while bags and sum(sizes) + room > self._budget:
            _delete(bags.pop(0)[1])
            sizes.pop(0)
        now = datetime.now(timezone.utc)
        path = self._folder / f"{self._prefix}-{number:06d}-{now:%Y%m%dT%H%M%SZ}"
        # Humble cannot read the metadata of version 9; all since can read 8.
        writer = Writer(path, version=8, storage_plugin=StoragePlugin.MCAP)
        writer.open()
        self._writer, self._connections = writer, {}
        self._size, self._began = _BAG_BYTES, monotonic()

    def _connection(self, message: Message):
        if message.topic not in self._connections:
            kind = message.type
            self._connections[message.topic] = self._writer.add_connection(
                message.topic, kind.name, msgdef=kind.definition, rihs01=kind.digest
            )
        return self._connections[message.topic]


def _bags_of(folder: Path, prefix: str) -> list[tuple[int, Path]]:
    """Return a writer's bags with their numbers, oldest first: a drone's clock may be wrong."""
    name = re.compile(rf"{re.escape(prefix)}-(\d{{6,}})-\d{{8}}T\d{{6}}Z")
    found = ((name.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in found if match)


def _files(bag: Path) -> list[Path]:
    return [
        path for path in bag.iterdir() if path.suffix == ".mcap" or "metadata.yaml" in path.name
    ]


def _size(bag: Path) -> int:
    return sum(path.stat().st_size for path in _files(bag))


def _delete(bag: Path) -> None:
    """Delete a bag, and its folder unless somebody has put something else into it."""
    for path in _files(bag):
        path.unlink()
    with contextlib.suppress(OSError):
        bag.rmdir()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
