"""Bags (rosbag2: MCAP, sqlite3) without ROS: their messages and images.

The storage files are read; metadata.yaml is only compared with them. A bag that is cut off, or
whose metadata.yaml is missing or wrong, is read as far as possible.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from drone_kd.core.arrays import UInt8Array
from drone_kd.media.compressed_images import EncodedError, decode_reduced
from drone_kd.media.image_files import SourceError
from drone_kd.media.raw_images import RawError, raw_to_bgr

if TYPE_CHECKING:
    from rosbags.rosbag2 import Reader
    from rosbags.typesys.store import Typestore

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
_SUFFIXES = (".mcap", ".db3")


class Topic(NamedTuple):
    """Topic of a bag."""

    name: str
    msgtype: str
    messages: int


class BagFile(NamedTuple):
    """Storage file of a bag."""

    path: Path  # the folder if the files are compressed as a whole
    topics: tuple[Topic, ...]  # that have messages
    start_ns: int  # recording time of the first message
    stop_ns: int  # just after that of the last message
    indexed: bool = True  # reading from the middle is cheap
    broken: bool = False  # cut off: it is read from its start as far as possible


class Message(NamedTuple):
    """Stored message: topic, type, recording time and CDR bytes."""

    topic: str
    msgtype: str
    logged_ns: int
    data: bytes


def is_bag(path: str | Path) -> bool:
    """Return whether a path is a rosbag2: an .mcap or .db3 file, or a folder with such files."""
    path = Path(path)
    if path.is_dir():
        return (path / "metadata.yaml").is_file() or bool(_storage_files(path))
    return path.suffix in _SUFFIXES


def inspect_bag(path: str | Path, on_error: Callable[[SourceError], None]) -> list[BagFile]:
    """Return the files of a bag, in the order of recording; SourceError: nothing can be read.

    `on_error` gets each problem of a bag that is still readable in part.
    """
    path = Path(path)
    expected, compressed = _read_metadata(path, on_error) if path.is_dir() else (Counter(), False)
    paths = [path] if compressed or path.is_file() else _storage_files(path)
    files: list[BagFile] = []
    errors = []
    for file_path in paths:
        try:
            files.append(_inspect(file_path)._replace(indexed=not compressed))
        except SourceError as error:
            errors.append(error)
            if (rest := _inspect_broken(file_path)).topics:
                files.append(rest)
                on_error(SourceError(f"{error}; read as far as it goes"))
    if not files and errors:
        raise errors[0]
    if not any(file.topics for file in files):
        raise SourceError(f"{path}: an empty bag: no messages in it")
    for difference in _count_differences(expected, files) if expected else ():
        on_error(SourceError(f"{path}: {difference}"))
    return sorted(files, key=lambda file: file.start_ns)


def read_messages(
    file: BagFile,
    topics: set[str],
    on_error: Callable[[SourceError], None],
    start_ns: int | None = None,
    stop_ns: int | None = None,
) -> Iterator[Message]:
    """Yield the messages of some topics, in the order of recording, up to where the file breaks.

    `on_error` is called where the file breaks. The recording times are those of the first message
    and the time to stop before; None: from the start, to the end.
    """
    count = 0
    messages = (_salvage if file.broken else _messages)(file.path, topics, start_ns, stop_ns)
    try:
        for message in messages:
            count += 1
            yield message
    except SourceError as error:
        on_error(SourceError(f"{error} after {count} messages"))


def message_to_bgr(message: Message) -> tuple[UInt8Array, int]:
    """Return an image message's pixels, (h, w, 3) BGR, and its header's stamp in ns.

    SourceError: the message cannot be used; one line, without the bag's name.
    """
    try:
        # Any: rosbags generates the message classes at run time.
        content: Any = _typestore().deserialize_cdr(message.data, message.msgtype)
        is_raw = message.msgtype == IMAGE
        image = raw_to_bgr(content) if is_raw else decode_reduced(bytes(content.data), 0, 0)[0]
    except (RawError, EncodedError) as error:
        raise SourceError(f"{message.topic}: {error}") from None
    except Exception as error:  # the reader raises anything on broken bytes
        raise SourceError(f"{message.topic}: a damaged message ({_line(error)})") from None
    return image, content.header.stamp.sec * 10**9 + content.header.stamp.nanosec


def _storage_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)


def _read_metadata(
    folder: Path, on_error: Callable[[SourceError], None]
) -> tuple[Counter[str], bool]:
    """Return the messages per topic in metadata.yaml, and whether the files are compressed."""
    try:
        text = (folder / "metadata.yaml").read_text(encoding="utf-8")
        info = yaml.safe_load(text)["rosbag2_bagfile_information"]
        counts = {
            entry["topic_metadata"]["name"]: int(entry["message_count"])
            for entry in info["topics_with_message_count"]
        }
        return Counter(counts), info.get("compression_mode", "").lower() not in ("", "none")
    except FileNotFoundError:
        on_error(SourceError(f"{folder}: no metadata.yaml; its files are read without it"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        on_error(SourceError(f"{folder}: damaged metadata.yaml; its files are read without it"))
    return Counter(), False


def _count_differences(expected: Counter[str], files: list[BagFile]) -> Iterator[str]:
    """Yield a text for each topic whose number of messages differs from metadata.yaml."""
    found: Counter[str] = Counter()
    for file in files:
        found.update({topic.name: topic.messages for topic in file.topics})
    for name in sorted(name for name in expected | found if expected[name] != found[name]):
        yield (
            f"metadata.yaml says {expected[name]} messages on {name}, the files hold "
            f"{found[name]}; the files are used"
        )


def _open(path: Path) -> Reader:
    try:
        from rosbags.rosbag2 import Reader
    except ImportError as error:
        install = "pip install 'drone_kd[record]'"
        raise SourceError(f"{path}: reading a bag needs rosbags ({error}): {install}") from None
    try:
        reader = Reader(path)
        reader.open()
    except Exception as error:  # each storage format has its own errors
        repair = "`ros2 bag reindex` repairs one that is cut off"
        raise SourceError(f"{path}: not a whole bag ({_line(error)}); {repair}") from None
    return reader


def _inspect(path: Path) -> BagFile:
    with closing(_open(path)) as reader:
        counts: Counter[tuple[str, str]] = Counter()
        for connection in reader.connections:
            counts[connection.topic, connection.msgtype] += connection.msgcount
        return BagFile(path, _topics(counts), reader.start_time, reader.end_time)


def _topics(counts: Counter[tuple[str, str]]) -> tuple[Topic, ...]:
    return tuple(
        Topic(name, msgtype, count) for (name, msgtype), count in sorted(counts.items()) if count
    )


def _messages(
    path: Path, topics: set[str], start_ns: int | None, stop_ns: int | None
) -> Iterator[Message]:
    with closing(_open(path)) as reader:
        connections = [c for c in reader.connections if c.topic in topics]
        if not connections:
            return
        try:
            for connection, logged_ns, data in reader.messages(connections, start_ns, stop_ns):
                yield Message(connection.topic, connection.msgtype, logged_ns, data)
        except Exception as error:  # each storage format has its own errors
            raise SourceError(f"{path}: breaks off ({_line(error)})") from None


def _inspect_broken(path: Path) -> BagFile:
    counts: Counter[tuple[str, str]] = Counter()
    first, last = 2**63 - 1, 0
    try:
        for message in _salvage(path, None, None, None):
            counts[message.topic, message.msgtype] += 1
            first, last = min(first, message.logged_ns), max(last, message.logged_ns)
    except SourceError:
        pass  # `read_messages` reports it
    return BagFile(path, _topics(counts), first, last + 1, indexed=False, broken=True)


def _salvage(
    path: Path, topics: set[str] | None, start_ns: int | None, stop_ns: int | None
) -> Iterator[Message]:
    """Yield messages from the start of a broken file; raise SourceError where it breaks."""
    try:
        for message in (_salvage_mcap if path.suffix == ".mcap" else _salvage_sqlite)(path):
            selected = topics is None or message.topic in topics
            if selected and (start_ns or 0) <= message.logged_ns < (stop_ns or 2**63):
                yield message
    except Exception as error:  # the readers raise anything on broken bytes
        raise SourceError(f"{path}: breaks off ({_line(error)})") from None


def _salvage_mcap(path: Path) -> Iterator[Message]:
    # rosbags opens no file without its index, which is written last.
    from mcap.records import Channel, Schema
    from mcap.records import Message as Record
    from mcap.stream_reader import StreamReader

    schemas, channels = {}, {}
    with path.open("rb") as stream:
        for record in StreamReader(stream).records:
            if isinstance(record, Schema):
                schemas[record.id] = record.name
            elif isinstance(record, Channel):
                channels[record.id] = record.topic, schemas.get(record.schema_id, "")
            elif isinstance(record, Record):
                yield Message(*channels[record.channel_id], record.log_time, record.data)


def _salvage_sqlite(path: Path) -> Iterator[Message]:
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?immutable=1", uri=True)) as database:
        # SQLite otherwise rejects a file that is shorter than its header says.
        database.execute("PRAGMA writable_schema=ON")
        topics = {i: (n, t) for i, n, t in database.execute("SELECT id, name, type FROM topics")}
        rows = database.execute("SELECT topic_id, timestamp, data FROM messages ORDER BY id")
        for topic_id, logged_ns, data in rows:
            name, msgtype = topics[topic_id]
            yield Message(name, msgtype, logged_ns, data)


@cache
def _typestore() -> Typestore:
    from rosbags.typesys import Stores, get_typestore

    # Image types are the same in every distribution.
    return get_typestore(Stores.ROS2_KILTED)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
