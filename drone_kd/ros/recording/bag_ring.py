"""Ring of rosbag2 bags: bounded total size, the oldest bag is deleted first."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
from collections.abc import Sequence
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


class Message(NamedTuple):
    """A message for a bag."""

    topic: str  # its full name
    type: MessageType
    data: bytes  # CDR


class BagRing:
    """Writes messages to rosbag2 MCAP bags that never exceed a total size.

    Each bag is a folder PREFIX-NUMBER-TIME. Only a finished bag has a metadata.yaml; one without
    is being written, or was when the program was killed.

    Args:
        folder: holds the bags; other files in it are not touched.
        prefix: of this writer's bags.
        budget_bytes: maximum size of all bags together.
    """

    def __init__(self, folder: Path, prefix: str, budget_bytes: int) -> None:
        self._folder = folder
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
            for path in (*writer.path.iterdir(), writer.path, self._folder):
                sync(path)
        except BaseException:
            with contextlib.suppress(OSError):
                writer.abort()
            raise

    def _open(self, room: int) -> Writer:
        """Open a bag after deleting so many that `room` bytes fit into the budget."""
        from rosbags.rosbag2 import StoragePlugin, Writer  # deferred: only bags need it

        bags = self._bags()
        number = bags[-1][0] + 1 if bags else 1
        sizes = [sum(file.stat().st_size for file in _files(path)) for _, path in bags]
        while bags and sum(sizes) + room > self._budget:
            _delete(bags.pop(0)[1])
            sizes.pop(0)
        now = datetime.now(timezone.utc)
        path = self._folder / f"{self._prefix}-{number:06d}-{now:%Y%m%dT%H%M%SZ}"
        # Humble cannot read the metadata of version 9; all since can read 8.
        writer = Writer(path, version=8, storage_plugin=StoragePlugin.MCAP)
        writer.open()
        self._size, self._opened, self._connections = _BAG_BYTES, monotonic(), {}
        return writer

    def _bags(self) -> list[tuple[int, Path]]:
        """Return this writer's bags with their numbers, by number: a clock may be wrong."""
        name = re.compile(rf"{re.escape(self._prefix)}-(\d{{6,}})-\d{{8}}T\d{{6}}Z")
        found = ((name.fullmatch(path.name), path) for path in self._folder.iterdir())
        return sorted((int(match[1]), path) for match, path in found if match)


def _files(bag: Path) -> list[Path]:
    return [p for p in bag.iterdir() if p.suffix == ".mcap" or "metadata.yaml" in p.name]


def _delete(bag: Path) -> None:
    """Delete a bag, and its folder unless it holds other files."""
    for path in _files(bag):
        path.unlink()
    with contextlib.suppress(OSError):
        bag.rmdir()
