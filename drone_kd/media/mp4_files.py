"""MP4 and MOV files of others: what FFmpeg would make in memory of their tables.

A number of four bytes may stand for billions of samples that all have the same size, and FFmpeg
makes an entry for each. ISO/IEC 14496-12 has the tables, QuickTime's File Format the others.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

# Of a part of the file beside the frames: ten hours of them take about 40 MB.
_MAX_BOX_BYTES, _MAX_BOXES = 256_000_000, 1_000_000
# For samples, each of 35 bytes: three days of video, or a day with sound.
_MAX_ENTRIES = 8_000_000
# Least number of samples in an entry of a track whose samples are sound without compression.
_BLOCK = 160
# Handlers of a track of sound alone.
_SOUND_HANDLERS = frozenset({b"soun", b"alis", b"url "})
# FFmpeg itself refuses more items than this.
_MAX_ITEMS, _MAX_GROUPS = 1 << 29, 1 << 31


def is_within_limits(file: BinaryIO) -> bool:
    """Return whether FFmpeg takes limited memory to open a whole MP4 or MOV."""
    size, at, entries = file.seek(0, os.SEEK_END), 0, 0
    for _ in range(_MAX_BOXES):
        if at >= size:
            return True
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8).ljust(8, b"\0"))
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8).ljust(8, b"\0"))
        # 0: to the end of the file.
        length = length or size - at
        if length < 8:
            return False
        if kind != b"mdat":
            if length > _MAX_BOX_BYTES:
                return False
            entries += _entries(file.read(length))
            if entries > min(_MAX_ENTRIES, size):
                return False
        at += length
    return False


def _entries(box: bytes) -> int:
    """Return how many entries FFmpeg makes at most for the tracks in a part of a file.

    stsz, stz2 and trun have the numbers of samples, and elst that of the parts of a track, each of
    which may be the whole. A compressed header hides its numbers.
    """
    if b"cmov" in box or _has_absurd_lists(box):
        return _MAX_ENTRIES + 1
    # The first part is before any track.
    return sum(
        (_sound_blocks(track) if _is_raw_sound(track) else _sum(track, b"stsz|stz2", 8))
        * max(_sum(track, b"elst", 4), 1)
        + _sum(track, b"trun", 4)
        for track in box.split(b"trak")
    )


def _has_absurd_lists(box: bytes) -> bool:
    """Return whether a list has more items than bytes: FFmpeg takes memory for them first.

    The word "keys" in a text has other letters behind it, a number that FFmpeg refuses.
    """
    items = [_big(content, 4) for content in _contents(box, b"keys|iinf")]
    groups = [
        # The number is behind others in later versions.
        _big(content, 8 + 4 * min(content[0], 2))
        for content in _contents(box, b"sgpd")
        if bytes(content[4:8]) == b"sync"
    ]
    return any(len(box) < number < _MAX_ITEMS for number in items) or any(
        len(box) < number < _MAX_GROUPS for number in groups
    )


def _is_raw_sound(track: bytes) -> bool:
    """Return whether FFmpeg makes entries for blocks of samples: all have a duration of 1."""
    handlers = {bytes(content[8:12]) for content in _contents(track, b"hdlr")}
    durations = [(_big(content, 4), _big(content, 12)) for content in _contents(track, b"stts")]
    return b"soun" in handlers <= _SOUND_HANDLERS and set(durations) == {(1, 1)}


def _sound_blocks(track: bytes) -> int:
    """Return how many blocks of samples a track of raw sound has at most.

    stsc has the numbers of samples in a chunk, stco and co64 the number of chunks.
    """
    most = max(
        (
            _big(content, at)
            for content in _contents(track, b"stsc")
            for at in range(12, min(8 + 12 * _big(content, 4), len(content)), 12)
        ),
        default=0,
    )
    return _sum(track, b"stco|co64", 4) * (most // _BLOCK + 1)


def _sum(box: bytes, names: bytes, at: int) -> int:
    """Return the sum of the numbers at a position in the content of all boxes of some names."""
    return sum(_big(content, at) for content in _contents(box, names))


def _contents(box: bytes, names: bytes) -> Iterator[memoryview]:
    """Yield what follows the name, or the length of 64 bits behind it, of each such box."""
    for name in re.finditer(names, box):
        is_wide = _big(box, max(name.start() - 4, 0)) == 1
        yield memoryview(box)[name.end() + 8 * is_wide :]


def _big(data: bytes | memoryview, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")
