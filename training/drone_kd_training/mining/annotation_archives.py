# SPDX-License-Identifier: AGPL-3.0-or-later
"""Files of annotation tools, plain or as the single file of a zip, read with limits.

A zip of some kilobytes may declare millions of files, or unpack to gigabytes.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path

from drone_kd.parsing import ParseError, read_limited
from drone_kd.text import one_line

# Of a zip's list of files: some 40,000 of them.
MAX_DIRECTORY_BYTES = 4_000_000
# What zipfile raises for damaged files; RuntimeError: for features that it lacks.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OverflowError, struct.error)
_CHUNK = 1 << 20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 1


def read_annotations(path: Path, name: str, limit: int) -> bytes:
    """Return a file's content, or that of the file ``name`` in it if it is a zip.

    ``limit``: maximum number of bytes that are returned. Raises ParseError if the file cannot be
    read or is larger; also if the zip is damaged or encrypted, or has too many files or none of
    this name.
    """
    try:
        with _SmallReads(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)) as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            if not regular or not zipfile.is_zipfile(file):
                return read_limited(path, limit)
            return _read_from_zip(file, path, name, limit)
    except _DAMAGED as error:
        raise ParseError(f"{one_line(path)}: expected a zip: {one_line(error)}") from None
    except (OSError, ValueError) as error:
        if isinstance(error, ParseError):
            raise
        raise ParseError(f"{one_line(path)}: {one_line(error)}") from None


class _SmallReads(io.FileIO):
    """A file that refuses to return more than a zip's list of files may have at a time."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to ``size`` bytes; zipfile asks for the whole list of files at once."""
        wanted = MAX_DIRECTORY_BYTES + 1
        content = super().read(wanted if size is None or size < 0 else min(size, wanted))
        if len(content) == wanted:
            raise zipfile.BadZipFile(f"its list of files has more than {wanted - 1} bytes")
        return content


def _read_from_zip(file: io.FileIO, path: Path, name: str, limit: int) -> bytes:
    with zipfile.ZipFile(file) as archive:
        try:
            entry = archive.getinfo(name)
        except KeyError:
            raise ParseError(f"{one_line(path)}: expected {name} in the zip, got none") from None
        if entry.flag_bits & _ENCRYPTED:
            raise ParseError(f"{one_line(path)}: expected a zip without a password")
        if entry.compress_type not in _METHODS:  # zipfile unpacks others without a limit
            raise ParseError(f"{one_line(path)}: expected a zip that is stored or deflated")
        content = bytearray()
        with archive.open(entry) as member:
            while len(content) <= limit and (chunk := member.read(_CHUNK)):
                content += chunk
    if len(content) > limit:
        raise ParseError(
            f"{one_line(path)}: expected at most {limit / 1e6:g} MB in {name}, got more"
        )
    return bytes(content)
