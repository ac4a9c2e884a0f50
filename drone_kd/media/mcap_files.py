"""MCAP files of others: topics and messages, within limits of unpacked size.

Format: https://mcap.dev/spec. A chunk is compressed, so a file of kilobytes may stand for
gigabytes; its index may name the same chunk a thousand times.
"""

from __future__ import annotations

import heapq
import io
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct, iter_unpack
from typing import BinaryIO, NamedTuple

from drone_kd.parsing import open_regular
from drone_kd.text import one_line

MAX_MESSAGE_BYTES = 256_000_000
# Unpacked bytes that are always allowed, and per stored byte beyond: of a chunk, of a file.
_CHUNK_BYTES, _FILE_BYTES, _RATIO = 32_000_000, 256_000_000, 1000
_MAX_CHUNK_BYTES = 512_000_000
# Of messages that wait for earlier ones, because chunks overlap in time.
_MAX_WAITING_BYTES = 256_000_000
_MESSAGE_BYTES = 300  # of memory, beside the data
# Of a record that is neither a message nor a chunk.
_MAX_RECORD_BYTES = 16_000_000
_MAGIC = b"\x89MCAP0\r\n"
_FOOTER_BYTES = 9 + 20 + len(_MAGIC)
_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _CHUNK_INDEX, _STATISTICS = 3, 4, 5, 6, 8, 11
_FOOTER, _DATA_END = 2, 15
_HEAD, _TIMES = Struct("<BQ"), Struct("<HIQQ")
_CHUNK_HEAD, _STATISTICS_HEAD = Struct("<QQQI"), Struct("<QHIIIIQQ")

Row = tuple[str, str, int, bytes]  # topic, type, recording time in ns, CDR bytes


class McapError(ValueError):
    """Damaged file, or one beyond a limit; the message is one line without the file's name."""


class UnpackedSizeError(McapError):
    """The file unpacks to more than the limit."""


class _Message(NamedTuple):
    channel: int
    logged_ns: int
    data: bytes


class _Chunk(NamedTuple):
    start_ns: int
    offset: int  # of its record
    stop_ns: int  # time of its last message
    channels: frozenset[int]  # that have messages in it; empty: unknown


@dataclass
class _Index:
    """What a file says of itself."""

    schemas: dict[int, str] = field(default_factory=dict)  # type by id
    channels: dict[int, tuple[str, str]] = field(default_factory=dict)  # topic and type by id
    chunks: list[_Chunk] = field(default_factory=list)
    unpacked: int = 0  # bytes of all chunks
    counts: dict[int, int] | None = None  # messages by channel; None: unknown
    start_ns: int = 0
    stop_ns: int = 0  # time of the last message

    def row(self, message: _Message) -> Row:
        """Return a message with its topic and type."""
        if message.channel not in self.channels:
            raise McapError("a message has an unknown channel")
        return *self.channels[message.channel], message.logged_ns, message.data

    def add(self, opcode: int, content: _Content) -> None:
        """Add a record of the summary or of the data."""
        if opcode == _SCHEMA:
            key, name = content.number(2), content.text()
            self.schemas[key] = name
        elif opcode == _CHANNEL:
            key, schema = content.number(2), content.number(2)
            self.channels.setdefault(key, (content.text(), self.schemas.get(schema, "")))
        elif opcode == _CHUNK_INDEX:
            start, stop, offset, _ = (content.number(8) for _ in range(4))
            offsets = content.take(content.number(4))
            channels = frozenset(channel for channel, _ in iter_unpack("<HQ", offsets))
            content.number(8)
            content.text()
            content.number(8)
            self.unpacked += content.number(8)
            self.chunks.append(_Chunk(start, offset, stop, channels))
        elif opcode == _STATISTICS:
            *_, self.start_ns, self.stop_ns = _STATISTICS_HEAD.unpack(
                content.take(_STATISTICS_HEAD.size)
            )
            self.counts = dict(iter_unpack("<HQ", content.take(content.number(4))))


class _Content:
    """Fields of a record."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, length: int) -> bytes:
        taken = self._data[self._at : self._at + length]
        if len(taken) != length:
            raise McapError("a record is shorter than its fields")
        self._at += length
        return taken

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "little")

    def text(self) -> str:
        return self.take(self.number(4)).decode()


def summary(path: Path) -> tuple[Counter[tuple[str, str]], int, int]:
    """Return the number of messages by topic and type, and when the first and last were recorded.

    Recording times are in ns; 2**63 - 1 and -1 if there are none.

    Raises:
        McapError: the file is damaged or beyond a limit.
        OSError, ValueError: it cannot be read, or is damaged in another way.
    """
    counts: Counter[tuple[str, str]] = Counter()
    with open_regular(path) as file:
        index = _read_index(file)
        if index.counts is not None:
            for channel, count in index.counts.items():
                if channel in index.channels:
                    counts[index.channels[channel]] += count
            return counts, index.start_ns, index.stop_ns
    first, last = 2**63 - 1, -1
    for topic, msgtype, logged_ns, _ in salvage(path):
        counts[topic, msgtype] += 1
        first, last = min(first, logged_ns), max(last, logged_ns)
    return counts, first, last


def messages(path: Path, topics: set[str], start_ns: int, stop_ns: int) -> Iterator[Row]:
    """Yield the messages of some topics in the order of recording; errors: see `summary`."""
    with open_regular(path) as file:
        index = _read_index(file)
        wanted = {key for key, (topic, _) in index.channels.items() if topic in topics}
        # Without a summary, the index knows no channels.
        if index.chunks or (index.channels and not wanted):
            yield from map(index.row, _in_order(file, index.chunks, wanted, start_ns, stop_ns))
            return
    for row in salvage(path):
        if row[0] in topics and start_ns <= row[2] < stop_ns:
            yield row


def salvage(path: Path) -> Iterator[Row]:
    """Yield all messages as they are stored, without the index; errors: see `summary`."""
    with open_regular(path) as file:
        size, index, unpacked = file.seek(0, io.SEEK_END), _Index(), 0
        file.seek(0)
        if file.read(len(_MAGIC)) != _MAGIC:
            raise McapError("expected an MCAP file, got other bytes")
        for opcode, length in _heads(file, len(_MAGIC), size):
            if opcode in (_DATA_END, _FOOTER):
                return
            if opcode == _MESSAGE:
                yield index.row(_message(file, length))
            elif opcode in (_SCHEMA, _CHANNEL):
                index.add(opcode, _content(file, length))
            elif opcode == _CHUNK:
                data = _unpacked(_content(file, length, _MAX_CHUNK_BYTES))
                unpacked += len(data)
                check_unpacked(unpacked, size)
                yield from map(index.row, _in_chunk(data, index))


def _read_index(file: BinaryIO) -> _Index:
    """Return what the end of a file says; McapError: it is cut off."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(size - _FOOTER_BYTES, 0))
    footer = file.read()
    whole = len(footer) == _FOOTER_BYTES and footer[0] == _FOOTER and footer.endswith(_MAGIC)
    file.seek(0)
    if file.read(len(_MAGIC)) != _MAGIC or not whole:
        raise McapError("the file is cut off, or no MCAP file")
    index, start, stop = _Index(), int.from_bytes(footer[9:17], "little"), size - _FOOTER_BYTES
    if start:
        for opcode, length in _heads(file, start, stop):
            if opcode in (_SCHEMA, _CHANNEL, _CHUNK_INDEX, _STATISTICS):
                index.add(opcode, _content(file, length))
    check_unpacked(index.unpacked, size)
    # Each chunk once, however often it is named.
    index.chunks = sorted({chunk.offset: chunk for chunk in index.chunks}.values())
    return index


def _heads(file: BinaryIO, at: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield opcode and length of the records between two positions, at the start of each."""
    while at < stop:
        file.seek(at)
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            raise McapError("a record is cut off")
        opcode, length = _HEAD.unpack(head)
        at += _HEAD.size + length
        if at > stop:
            raise McapError("a record is cut off")
        if not opcode:  # what a disk has after a power failure: gigabytes of zeros
            raise McapError("expected a record, got zeros")
        yield opcode, length


def _content(file: BinaryIO, length: int, limit: int = _MAX_RECORD_BYTES) -> _Content:
    """Read a record; McapError: it is larger than the limit."""
    if length > limit:
        raise McapError(f"expected a record of at most {limit / 1e6:g} MB, got a larger one")
    return _Content(file.read(length))


def _in_order(
    file: BinaryIO, chunks: list[_Chunk], wanted: set[int], start_ns: int, stop_ns: int
) -> Iterator[_Message]:
    """Yield the messages of sorted chunks, merged where these overlap in time."""
    size, waiting, unpacked = file.seek(0, io.SEEK_END), _Waiting(), 0
    for chunk in chunks:
        apart = chunk.channels and not chunk.channels & wanted
        if apart or chunk.stop_ns < start_ns or chunk.start_ns >= stop_ns:
            continue
        yield from waiting.take(chunk.start_ns)
        opcode, length = next(_heads(file, chunk.offset, size), (0, 0))
        if opcode != _CHUNK:
            raise McapError("the index names a chunk where there is none")
        data = _unpacked(_content(file, length, _MAX_CHUNK_BYTES))
        # The index may declare less.
        unpacked += len(data)
        check_unpacked(unpacked, size)
        for message in _in_chunk(data):
            if message.channel in wanted and start_ns <= message.logged_ns < stop_ns:
                waiting.add(message)
                if waiting.bytes > _MAX_WAITING_BYTES:
                    yield from waiting.take(waiting.first_ns + 1)
    yield from waiting.take(2**64)


class _Waiting:
    """Messages that wait for earlier ones of the next chunks."""

    def __init__(self) -> None:
        self.bytes = 0
        self._heap: list[tuple[int, int, _Message]] = []
        self._added = 0

    @property
    def first_ns(self) -> int:
        return self._heap[0][0]

    def add(self, message: _Message) -> None:
        self._added += 1
        heapq.heappush(self._heap, (message.logged_ns, self._added, message))
        self.bytes += len(message.data) + _MESSAGE_BYTES

    def take(self, stop_ns: int) -> Iterator[_Message]:
        """Yield and remove the messages before a time."""
        while self._heap and self._heap[0][0] < stop_ns:
            *_, message = heapq.heappop(self._heap)
            self.bytes -= len(message.data) + _MESSAGE_BYTES
            yield message


def _in_chunk(data: bytes, index: _Index | None = None) -> Iterator[_Message]:
    """Yield the messages of an unpacked chunk; its other records go to `index`."""
    for opcode, length in _heads(file := io.BytesIO(data), 0, len(data)):
        if opcode == _MESSAGE:
            yield _message(file, length)
        elif index is not None and opcode in (_SCHEMA, _CHANNEL):
            index.add(opcode, _content(file, length))


def _message(file: BinaryIO, length: int) -> _Message:
    if length < _TIMES.size:
        raise McapError("a message is cut off")
    if length > MAX_MESSAGE_BYTES:
        raise McapError(f"expected messages of at most {MAX_MESSAGE_BYTES / 1e6:g} MB, got more")
    channel, _, logged_ns, _ = _TIMES.unpack(file.read(_TIMES.size))
    return _Message(channel, logged_ns, file.read(length - _TIMES.size))


def _unpacked(content: _Content) -> bytes:
    """Return the content of a chunk."""
    _, _, size, checksum = _CHUNK_HEAD.unpack(content.take(_CHUNK_HEAD.size))
    compression = content.text()
    data = content.take(content.number(8))
    limit = unpacked_limit(len(data), _MAX_CHUNK_BYTES)
    if size > limit:
        got = f"{size / 1e6:g} MB"
        raise UnpackedSizeError(f"expected a chunk of at most {limit / 1e6:g} MB, got {got}")
    data = unpack(data, compression, size)
    if len(data) != size:
        raise McapError(f"expected a chunk of {size} bytes, got another size")
    if checksum and zlib.crc32(data) != checksum:
        raise McapError("a chunk differs from its checksum")
    return data


def unpacked_limit(stored: int, most: int) -> int:
    """Return how many bytes a chunk or a message may have unpacked; never more than `most`."""
    return min(max(_CHUNK_BYTES, _RATIO * stored), most)


def unpack(data: bytes, compression: str, limit: int) -> bytes:
    """Return decompressed bytes, at most `limit` + 1 of them.

    Raises:
        McapError: the compression is none of "", "lz4" and "zstd".
        ImportError: its package is not installed.
        RuntimeError, ValueError: the data are damaged.
    """
    if compression == "":
        return data
    if compression == "lz4":
        import lz4.frame

        unpacked: bytes = lz4.frame.LZ4FrameDecompressor().decompress(data, limit + 1)
        return unpacked
    if compression == "zstd":
        return unpack_zstd(io.BytesIO(data)).read(limit + 1)
    raise McapError(f"expected a chunk of lz4 or zstd, got {one_line(compression, 20)!r}")


def unpack_zstd(file: BinaryIO) -> BinaryIO:
    """Return a stream of the decompressed bytes of a file."""
    import zstandard

    reader: BinaryIO = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
    return reader


def check_unpacked(unpacked: int, stored: int) -> None:
    """Raise UnpackedSizeError if the chunks or messages of a file unpack to too many bytes."""
    limit = max(_FILE_BYTES, _RATIO * stored)
    if unpacked > limit:
        got = f"{unpacked / 1e6:g} MB in a file of {stored / 1e6:g} MB"
        raise UnpackedSizeError(f"expected at most {limit / 1e6:g} MB unpacked, got {got}")
