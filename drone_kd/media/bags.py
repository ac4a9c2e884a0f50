"""Bags (rosbag2: MCAP, sqlite3) without ROS: their messages and images.

The storage files are read; metadata.yaml is only compared with them. A bag that is cut off, or
whose metadata.yaml is missing or wrong, is read as far as possible.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from drone_kd.core.arrays import UInt8Array
from drone_kd.media import mcap_files, sqlite_bags
from drone_kd.media.compressed_images import MAX_PIXELS, EncodedError, decode_reduced
from drone_kd.media.image_files import SourceError
from drone_kd.media.mcap_files import (
    MAX_MESSAGE_BYTES,
    UnpackedSizeError,
    check_unpacked,
    unpack,
    unpack_zstd,
    unpacked_limit,
)
from drone_kd.media.raw_images import RawError, raw_to_bgr
from drone_kd.parsing import open_regular, read_yaml
from drone_kd.text import one_line

if TYPE_CHECKING:
    from rosbags.typesys.store import Typestore

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
_SUFFIXES = (".mcap", ".db3")
# Modes of compression: each file, or each message.
_FILE, _MESSAGE = "file", "message"
# Decompressed bytes of the files of a bag that are always allowed, and per stored byte beyond.
_FILE_BYTES, _FILE_RATIO = 256_000_000, 100
_MAX_DIFFERENCES = 10
_REPAIR = "`ros2 bag reindex` repairs one that is cut off"


class _RefusedError(SourceError):
    """A file of which no part is read."""


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
    expected, mode = _read_metadata(path, on_error) if path.is_dir() else (Counter(), "")
    paths = _storage_files(path) if path.is_dir() and not mode else [path]
    errors: list[SourceError] = []
    files = [file for p in paths for file in _inspect_or_salvage(p, path, mode, errors)]
    if not files and errors:
        raise errors[0]
    for error in errors:
        on_error(error)
    if not any(file.topics for file in files):
        raise SourceError(f"{one_line(path)}: an empty bag: no messages in it")
    differences = list(_count_differences(expected, files)) if expected else []
    for difference in differences[:_MAX_DIFFERENCES]:
        on_error(SourceError(f"{one_line(path)}: {difference}"))
    if len(differences) > _MAX_DIFFERENCES:
        on_error(SourceError(f"{one_line(path)}: {len(differences)} such topics in metadata.yaml"))
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
        if message.msgtype == IMAGE:
            _check_pixels(content.width, content.height)
            image = raw_to_bgr(content)
        else:
            image = decode_reduced(bytes(content.data), 0, 0)[0]
    except (RawError, EncodedError) as error:
        raise SourceError(f"{one_line(message.topic)}: {error}") from None
    except Exception as error:  # the reader raises anything on broken bytes
        problem = one_line(error) or type(error).__name__
        raise SourceError(f"{one_line(message.topic)}: a damaged message ({problem})") from None
    return image, content.header.stamp.sec * 10**9 + content.header.stamp.nanosec


def _check_pixels(width: int, height: int) -> None:
    """Raise RawError for a raw image that becomes more BGR than one that is compressed may."""
    if width * height >= MAX_PIXELS:
        expected = f"less than {MAX_PIXELS / 1e6:g} megapixels"
        raise RawError(f"expected {expected}, got {width}x{height} pixels")


def _storage_files(folder: Path, suffixes: tuple[str, ...] = _SUFFIXES) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.endswith(suffixes))


def _leads_outside(path: Path, bag: Path) -> bool:
    return path != bag and not path.resolve().is_relative_to(bag.resolve())


def _read_metadata(
    folder: Path, on_error: Callable[[SourceError], None]
) -> tuple[Counter[str], str]:
    """Return the messages per topic in metadata.yaml, and what is compressed in ROS's words."""
    if not (folder / "metadata.yaml").exists():
        on_error(
            SourceError(f"{one_line(folder)}: no metadata.yaml; its files are read without it")
        )
        return Counter(), ""
    try:
        info = read_yaml(folder / "metadata.yaml")["rosbag2_bagfile_information"]
        counts = {
            str(entry["topic_metadata"]["name"]): int(entry["message_count"])
            for entry in info["topics_with_message_count"]
        }
        if max(counts.values(), default=0) >= 2**63:
            raise ValueError
        mode = info.get("compression_mode", "").lower()
        return Counter(counts), mode if mode in (_FILE, _MESSAGE) else ""
    except (ArithmeticError, ValueError, KeyError, TypeError, AttributeError):
        on_error(
            SourceError(
                f"{one_line(folder)}: damaged metadata.yaml; its files are read without it"
            )
        )
    return Counter(), ""


def _count_differences(expected: Counter[str], files: list[BagFile]) -> Iterator[str]:
    """Yield a text for each topic whose number of messages differs from metadata.yaml."""
    found: Counter[str] = Counter()
    for file in files:
        found.update({topic.name: topic.messages for topic in file.topics})
    for name in sorted(name for name in expected | found if expected[name] != found[name]):
        yield (
            f"metadata.yaml says {expected[name]} messages on {one_line(name)}, the files hold "
            f"{found[name]}; the files are used"
        )


def _inspect_or_salvage(
    path: Path, bag: Path, mode: str, errors: list[SourceError]
) -> list[BagFile]:
    """Return a file of a bag if any of it can be read; its problem goes to `errors`."""
    try:
        if _leads_outside(path, bag):
            raise _RefusedError(f"{one_line(path)}: a link out of the bag is not read")
        return [_inspect(path, mode)._replace(indexed=not mode)]
    except _RefusedError as error:
        errors.append(error)
        return []
    except SourceError as error:
        problem = error
    try:
        rest = [] if mode else [_inspect_broken(path)]
    except _RefusedError as error:
        errors.append(error)
        return []
    rest = [file for file in rest if file.topics]
    errors.append(SourceError(f"{problem}; read as far as it goes") if rest else problem)
    return rest


def _inspect(path: Path, mode: str = "") -> BagFile:
    """Return a storage file, or a folder of compressed ones; SourceError: it is not whole."""
    counts: Counter[tuple[str, str]] = Counter()
    first, last = 2**63 - 1, -1
    with (
        _in_one_line(path, f"not a whole bag ({{}}); {_REPAIR}"),
        _unpacked_files(path, mode) as files,
    ):
        for file in files:
            found, start, stop = _format(file).summary(file)
            counts += found
            first, last = min(first, start), max(last, stop)
    return BagFile(path, _topics(counts), first, last + 1)


def _topics(counts: Counter[tuple[str, str]]) -> tuple[Topic, ...]:
    return tuple(
        Topic(name, msgtype, count) for (name, msgtype), count in sorted(counts.items()) if count
    )


def _messages(
    path: Path, topics: set[str], start_ns: int | None, stop_ns: int | None
) -> Iterator[Message]:
    mode = _read_metadata(path, lambda _: None)[1] if path.is_dir() else ""
    span = start_ns or 0, 2**63 if stop_ns is None else stop_ns
    with _in_one_line(path, "breaks off ({})"), _unpacked_files(path, mode) as files:
        for file in files:
            stored, unpacked = file.stat().st_size, 0
            for topic, msgtype, logged_ns, data in _format(file).messages(file, topics, *span):
                content = data
                if mode == _MESSAGE:
                    content = _unpacked_message(data)
                    unpacked += len(content)
                    check_unpacked(unpacked, stored)
                yield Message(topic, msgtype, logged_ns, content)


def _inspect_broken(path: Path) -> BagFile:
    counts: Counter[tuple[str, str]] = Counter()
    first, last = 2**63 - 1, 0
    try:
        for message in _salvage(path, None, None, None):
            counts[message.topic, message.msgtype] += 1
            first, last = min(first, message.logged_ns), max(last, message.logged_ns)
    except _RefusedError:
        raise
    except SourceError:
        pass  # `read_messages` reports it
    return BagFile(path, _topics(counts), first, last + 1, indexed=False, broken=True)


def _salvage(
    path: Path, topics: set[str] | None, start_ns: int | None, stop_ns: int | None
) -> Iterator[Message]:
    """Yield messages from the start of a broken file; raise SourceError where it breaks."""
    with _in_one_line(path, "breaks off ({})"):
        for row in _format(path).salvage(path):
            message = Message(*row)
            selected = topics is None or message.topic in topics
            if selected and (start_ns or 0) <= message.logged_ns < (stop_ns or 2**63):
                yield message


def _format(path: Path) -> ModuleType:
    return mcap_files if path.suffix == ".mcap" else sqlite_bags


@contextmanager
def _in_one_line(path: Path, text: str) -> Iterator[None]:
    """Turn what readers raise on damaged files into a SourceError; `text` has room for it."""
    try:
        yield
    except ModuleNotFoundError as error:
        install = "pip install 'drone_kd[simulation]'"
        raise SourceError(
            f"{one_line(path)}: reading a bag needs {error.name}: {install}"
        ) from None
    except UnpackedSizeError as error:
        raise _RefusedError(f"{one_line(path)}: {error}") from None
    except Exception as error:  # each format and compression has its own errors
        raise SourceError(
            f"{one_line(path)}: {text.format(one_line(error) or type(error).__name__)}"
        ) from None


@contextmanager
def _unpacked_files(path: Path, mode: str) -> Iterator[Iterable[Path]]:
    """Yield the storage files of a folder, or a storage file; whole files are decompressed.

    A decompressed file exists until the next one is taken.
    """
    if not path.is_dir():
        yield [path]
        return
    ends = tuple(f"{suffix}.zstd" for suffix in _SUFFIXES) if mode == _FILE else _SUFFIXES
    files = [file for file in _storage_files(path, ends) if not _leads_outside(file, path)]
    if mode != _FILE:
        yield files
        return
    with TemporaryDirectory() as folder:
        yield _unpack_files(files, Path(folder))


def _unpack_files(paths: list[Path], folder: Path) -> Iterator[Path]:
    """Decompress files into a folder, one at a time, within one limit for all."""
    left = max(_FILE_BYTES, _FILE_RATIO * sum(path.stat().st_size for path in paths))
    for path in paths:
        unpacked = folder / path.stem
        left -= _unpack_file(path, unpacked, left)
        yield unpacked
        unpacked.unlink()


def _unpack_file(path: Path, unpacked: Path, limit: int) -> int:
    """Decompress a file and return its size; UnpackedSizeError: it is more than the limit."""
    left = limit
    with open_regular(path) as file, unpacked.open("wb") as output:
        stream = unpack_zstd(file)
        while block := stream.read(1 << 20):
            left -= len(block)
            if left < 0:
                raise UnpackedSizeError(f"expected at most {_FILE_RATIO} times its size unpacked")
            output.write(block)
    return limit - left


def _unpacked_message(data: bytes) -> bytes:
    limit = unpacked_limit(len(data), MAX_MESSAGE_BYTES)
    content = unpack(data, "zstd", limit)
    if len(content) > limit:
        raise ValueError(f"expected a message of at most {limit / 1e6:g} MB, got more")
    return content


@cache
def _typestore() -> Typestore:
    from rosbags.typesys import Stores, get_typestore

    # Image types are the same in every distribution.
    return get_typestore(Stores.ROS2_KILTED)
