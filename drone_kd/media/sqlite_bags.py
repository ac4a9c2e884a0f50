"""Bags in SQLite (.db3) of others: topics and messages, without running what the schema says.

A table may be a view that never ends, a virtual table or a column that is computed; a page may be
its own child. So only plain tables are read, no more than the file can hold, with a limited number
of steps.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from drone_kd.media.mcap_files import MAX_MESSAGE_BYTES, Row
from drone_kd.parsing import open_regular

# Steps of SQLite's machine between two calls of the handler, calls that are always allowed, and
# bytes of the file for each further one: a sorted message takes about 30 steps.
_STEPS, _CALLS, _BYTES_PER_CALL = 1000, 1000, 100
_LAST_NS = 2**63 - 1

T = TypeVar("T")


class SqliteError(ValueError):
    """Damaged file, or one that is no plain bag; one line without the file's name."""


def summary(path: Path) -> tuple[Counter[tuple[str, str]], int, int]:
    """Return the number of messages by topic and type, and when the first and last were recorded.

    Recording times are in ns; 2**63 - 1 and -1 if there are none.

    Raises:
        SqliteError, sqlite3.Error: the file is damaged, or no plain bag.
        OSError, ValueError: it cannot be read.
    """
    counts: Counter[tuple[str, str]] = Counter()
    first, last = _LAST_NS, -1
    with _open(path) as database:
        topics = _topics(database)
        rows = database.execute(
            "SELECT topic_id, COUNT(*), MIN(timestamp), MAX(timestamp) FROM messages"
            " GROUP BY topic_id"
        )
        for topic, count, start_ns, stop_ns in rows:
            if topic in topics:
                counts[topics[topic]] += count
                first, last = min(first, _check(start_ns, int)), max(last, _check(stop_ns, int))
    return counts, first, last


def messages(path: Path, topics: set[str], start_ns: int, stop_ns: int) -> Iterator[Row]:
    """Yield the messages of some topics in the order of recording; errors: see `summary`."""
    with _open(path) as database:
        known = _topics(database)
        wanted = json.dumps([key for key, (name, _) in known.items() if name in topics])
        # Sorted without the data, which can share pages, so that they take more than the file.
        keys = database.execute(
            "SELECT rowid FROM messages"
            " WHERE topic_id IN (SELECT value FROM json_each(?))"
            " AND timestamp >= ? AND timestamp < ? ORDER BY timestamp",
            (wanted, start_ns, min(stop_ns, _LAST_NS)),
        )
        one = "SELECT topic_id, timestamp, data FROM messages WHERE rowid = ?"
        yield from _rows((row for key in keys for row in database.execute(one, key)), known, path)


def salvage(path: Path) -> Iterator[Row]:
    """Yield the messages as they are stored, up to where a file breaks; errors: see `summary`."""
    with _open(path, broken=True) as database:
        known = _topics(database)
        rows = database.execute("SELECT topic_id, timestamp, data FROM messages ORDER BY rowid")
        yield from _rows(rows, known, path)


@contextmanager
def _open(path: Path, broken: bool = False) -> Iterator[sqlite3.Connection]:
    """Open a file to read it; nothing is written, nor another file opened."""
    with open_regular(path) as file:
        size = path.stat().st_size
        if file.read(16) != b"SQLite format 3\0":
            raise SqliteError("expected an SQLite database, got other bytes")
    calls, limit = itertools.count(), _CALLS + size // _BYTES_PER_CALL
    address = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
    with closing(sqlite3.connect(address, uri=True)) as database:
        database.set_progress_handler(lambda: next(calls) > limit, _STEPS)
        if sys.version_info >= (3, 11):
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_MESSAGE_BYTES)
        database.execute("PRAGMA trusted_schema=OFF")
        database.execute("PRAGMA cell_size_check=ON")
        if broken:
            # SQLite otherwise rejects a file that is shorter than its header says.
            database.execute("PRAGMA writable_schema=ON")
        for name in ("topics", "messages"):
            _check_table(database, name)
        yield database


def _check_table(database: sqlite3.Connection, name: str) -> None:
    """Raise SqliteError unless a name is a table whose columns are all stored."""
    found = database.execute(
        "SELECT type, sql FROM sqlite_master WHERE name = ? COLLATE NOCASE", (name,)
    ).fetchmany(2)
    if len(found) != 1 or found[0][0] != "table":
        raise SqliteError(f"expected a table {name}, got none")
    columns = database.execute("SELECT hidden FROM pragma_table_xinfo(?)", (name,)).fetchall()
    plain = str(found[0][1]).startswith("CREATE TABLE ") and not any(row[0] for row in columns)
    if not plain:
        raise SqliteError(f"expected a plain table {name}, got a virtual or computed one")


def _topics(database: sqlite3.Connection) -> dict[int, tuple[str, str]]:
    """Return topic and type by number."""
    topics = {}
    for key, name, msgtype in database.execute("SELECT id, name, type FROM topics"):
        topics[_check(key, int)] = _check(name, str), _check(msgtype, str)
    return topics


def _rows(
    rows: Iterator[tuple[Any, Any, Any]], topics: dict[int, tuple[str, str]], path: Path
) -> Iterator[Row]:
    size, taken = path.stat().st_size, 0
    for topic, logged_ns, data in rows:
        taken += 1 + len(_check(data, bytes))
        if taken > size:
            raise SqliteError("it has more messages than the file can hold")
        if len(data) > MAX_MESSAGE_BYTES:
            raise SqliteError(f"expected messages of {MAX_MESSAGE_BYTES / 1e6:g} MB, got more")
        if topic not in topics:
            raise SqliteError("a message has an unknown topic")
        yield *topics[topic], _check(logged_ns, int), data


def _check(value: object, kind: type[T]) -> T:
    """Return a value of SQLite, whose columns hold any type; SqliteError: it is of another one."""
    if not isinstance(value, kind):
        raise SqliteError(f"expected {kind.__name__} in a column, got {type(value).__name__}")
    return value
