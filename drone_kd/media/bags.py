"""Bags (rosbag2: MCAP, sqlite3) without ROS: their messages, and the pictures in them.

The files themselves are read, not what metadata.yaml says of them: a bag that was cut off, or has
no metadata.yaml or a wrong one, gives what can be read of it.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from drone_kd.media.compressed_images import EncodedError, decode_reduced
from drone_kd.media.image_files import SourceError
from drone_kd.media.raw_images import RawError, raw_to_bgr

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
_SUFFIXES = (".mcap", ".db3")


class Topic(NamedTuple):
    """A topic, and how many messages of it there are."""

    name: str
    msgtype: str
    messages: int


class BagFile(NamedTuple):
    """One file of a bag.

    Attributes:
        path: of the file; of the folder where the files are compressed as a whole.
        topics: that have messages.
        start_ns, stop_ns: when its first message was recorded, and just after its last.
        indexed: whether reading from its middle is cheap.
        broken: whether it was cut off: it is read from its start, as far as that goes.
    """

    path: Path
    topics: tuple[Topic, ...]
    start_ns: int
    stop_ns: int
    indexed: bool = True
    broken: bool = False


class Message(NamedTuple):
    """A message as it is stored: when it was recorded, and its CDR."""

    topic: str
    msgtype: str
    logged_ns: int
    data: bytes


def is_bag(path: str | Path) -> bool:
    """Tell whether this is a rosbag2: an .mcap or .db3 file, or a folder with some."""
    path = Path(path)
    if path.is_dir():
        return (path / "metadata.yaml").is_file() or bool(_storage_files(path))
    return path.suffix in _SUFFIXES


def inspect_bag(path: str | Path, on_error: Callable[[SourceError], None]) -> list[BagFile]:
    """Look at every file of a bag, in the order of recording.

    Args:
        on_error: told what is wrong with it, where something of it can be read all the same.

    Raises:
        SourceError: nothing of it can be read.
    """
    path = Path(path)
    promised, compressed = _metadata(path, on_error) if path.is_dir() else (Counter(), False)
    files, errors = [], []
    for file in [path] if compressed or path.is_file() else _storage_files(path):
        try:
            files.append(_inspect(file)._replace(indexed=not compressed))
        except SourceError as error:
            errors.append(error)
            if (rest := _inspect_broken(file)).topics:
                files.append(rest)
                on_error(SourceError(f"{error}; read as far as it goes"))
    if not files and errors:
        raise errors[0]
    if not any(file.topics for file in files):
        raise SourceError(f"{path}: an empty bag: no messages in it")
    found = Counter()
    for file in files:
        found.update({topic.name: topic.messages for topic in file.topics})
    for name in sorted(n for n in promised | found if promised and promised[n] != found[n]):
        on_error(
            SourceError(
                f"{path}: metadata.yaml says {promised[name]} messages on {name}, the files hold "
                f"{found[name]}; the files are used"
            )
        )
    return sorted(files, key=lambda file: file.start_ns)


def read_messages(
    file: BagFile,
    topics: set[str],
    on_error: Callable[[SourceError], None],
    start_ns: int | None = None,
    stop_ns: int | None = None,
) -> Iterator[Message]:
    """Yield the messages of some topics, in the order of recording, up to where the file breaks.

    Args:
        on_error: told where it breaks.
        start_ns, stop_ns: only what was recorded from the one time on, until before the other.
    """
    read = 0
    messages = (_salvage if file.broken else _messages)(file.path, topics, start_ns, stop_ns)
    try:
        for message in messages:
            read += 1
            yield message
    except SourceError as error:
        on_error(SourceError(f"{error} after {read} messages"))


def message_to_bgr(message: Message) -> tuple[np.ndarray, int]:
    """Return the pixels of an image, uint8 (h, w, 3) BGR, and its header's stamp in ns.

    Raises:
        SourceError: the message cannot be used; one line, without the bag's name.
    """
    try:
        read = _typestore().deserialize_cdr(message.data, message.msgtype)
        if message.msgtype == IMAGE:
            image = raw_to_bgr(read)
        else:
            image = decode_reduced(bytes(read.data), 0, 0)[0]
    except (RawError, EncodedError) as error:
        raise SourceError(f"{message.topic}: {error}") from None
    except Exception as error:  # whatever broken bytes do to the reader
        raise SourceError(f"{message.topic}: a damaged message ({_line(error)})") from None
    return image, read.header.stamp.sec * 10**9 + read.header.stamp.nanosec


def _storage_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES)


def _metadata(folder: Path, on_error: Callable[[SourceError], None]) -> tuple[Counter, bool]:
    """Messages per topic, as metadata.yaml has it, and whether the files are compressed."""
    try:
        text = (folder / "metadata.yaml").read_text(encoding="utf-8")
        known = yaml.safe_load(text)["rosbag2_bagfile_information"]
        counts = {
            entry["topic_metadata"]["name"]: int(entry["message_count"])
            for entry in known["topics_with_message_count"]
        }
        return Counter(counts), known.get("compression_mode", "").lower() not in ("", "none")
    except FileNotFoundError:
        on_error(SourceError(f"{folder}: no metadata.yaml; its files are read without"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        on_error(SourceError(f"{folder}: metadata.yaml cannot be read; the files are, without"))
    return Counter(), False


def _open(path: Path):
    try:
        from rosbags.rosbag2 import Reader
    except ImportError as error:
        raise SourceError(
            f"{path}: reading a bag needs rosbags ({error}): pip install 'drone_kd[record]'"
        ) from None
    try:
        reader = Reader(path)
        reader.open()
    except Exception as error:  # each kind of storage has errors of its own
        raise SourceError(
            f"{path}: not a whole bag ({_line(error)}); `ros2 bag reindex` mends one that was cut "
            "off"
        ) from None
    return reader


def _inspect(path: Path) -> BagFile:
    with closing(_open(path)) as reader:
        counts: Counter = Counter()
        for connection in reader.connections:
            counts[connection.topic, connection.msgtype] += connection.msgcount
        topics = tuple(Topic(*key, n) for key, n in sorted(counts.items()) if n)
        return BagFile(path, topics, reader.start_time, reader.end_time)


def _messages(
    path: Path, topics: set[str], start_ns: int | None, stop_ns: int | None
) -> Iterator[Message]:
    with closing(_open(path)) as reader:
        connections = [c for c in reader.connections if c.topic in topics]
        if not connections:
            return
        messages = reader.messages(connections, start_ns, stop_ns)
        while True:
            try:
                connection, logged_ns, data = next(messages)
            except StopIteration:
                return
            except Exception as error:  # each kind of storage has errors of its own
                raise SourceError(f"{path}: breaks off ({_line(error)})") from None
            yield Message(connection.topic, connection.msgtype, logged_ns, data)


def _inspect_broken(path: Path) -> BagFile:
    counts: Counter = Counter()
    first, last = 2**63 - 1, 0
    try:
        for message in _salvage(path, None, None, None):
            counts[message.topic, message.msgtype] += 1
            first, last = min(first, message.logged_ns), max(last, message.logged_ns)
    except SourceError:
        pass  # said by whoever reads it
    topics = tuple(Topic(*key, n) for key, n in sorted(counts.items()))
    return BagFile(path, topics, first, last + 1, indexed=False, broken=True)


def _salvage(
    path: Path, topics: set[str] | None, start_ns: int | None, stop_ns: int | None
) -> Iterator[Message]:
    """Messages from the start of a file on; raises SourceError where it breaks."""
    messages = (_salvage_mcap if path.suffix == ".mcap" else _salvage_sqlite)(path)
    while True:
        try:
            message = next(messages)
        except StopIteration:
            return
        except Exception as error:  # whatever broken bytes do to the readers
            raise SourceError(f"{path}: breaks off ({_line(error)})") from None
        wanted = topics is None or message.topic in topics
        if wanted and (start_ns or 0) <= message.logged_ns < (stop_ns or 2**63):
            yield message


def _salvage_mcap(path: Path) -> Iterator[Message]:
    # rosbags opens no file without its index, which is written last.
    from mcap.records import Channel, Schema
    from mcap.records import Message as Record
    from mcap.stream_reader import StreamReader

    schemas, channels = {}, {}
    with open(path, "rb") as stream:
        for record in StreamReader(stream).records:
            if isinstance(record, Schema):
                schemas[record.id] = record.name
            elif isinstance(record, Channel):
                channels[record.id] = record.topic, schemas.get(record.schema_id, "")
            elif isinstance(record, Record):
                yield Message(*channels[record.channel_id], record.log_time, record.data)


def _salvage_sqlite(path: Path) -> Iterator[Message]:
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?immutable=1", uri=True)) as database:
        # SQLite otherwise refuses a file that is shorter than its header says.
        database.execute("PRAGMA writable_schema=ON")
        topics = {i: (n, t) for i, n, t in database.execute("SELECT id, name, type FROM topics")}
        rows = database.execute("SELECT topic_id, timestamp, data FROM messages ORDER BY id")
        for topic_id, logged_ns, data in rows:
            yield Message(*topics[topic_id], logged_ns, data)


@cache
def _typestore():
    from rosbags.typesys import Stores, get_typestore

    # Images are the same in every distribution.
    return get_typestore(Stores.ROS2_KILTED)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
