# SPDX-License-Identifier: AGPL-3.0-or-later
"""Flights at a URL: downloaded once, into a folder that only this user can enter.

A flight is cached below `$XDG_CACHE_HOME/drone_kd/flights` (default: `~/.cache`, see
`paths.cache_folder`), under a hash of its URL.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec

from drone_kd.files import atomic_folder, private_folder
from drone_kd.media.image_files import VIDEO_SUFFIXES, SourceError
from drone_kd.paths import cache_folder
from drone_kd.text import one_line

LOGGER = logging.getLogger(__name__)

# Of fsspec. Others read a file in another way, run code, or chain several.
SCHEMES = (
    "abfs", "abfss", "adl", "az", "file", "ftp", "gcs", "gs", "hdfs", "http", "https", "oss",
    "s3", "s3a", "sftp", "smb", "ssh", "webhdfs",
)  # fmt: skip
# Of a flight.
MAX_BYTES, MAX_FILES = 200_000_000_000, 100_000
# Of flights that are one file: fsspec would read an HTTP file to tell whether it is a folder.
_FILE_SUFFIXES = (*VIDEO_SUFFIXES, ".mcap", ".db3")


class _RefusedError(ValueError):
    """Flight that is not downloaded; the message holds nothing of its URL."""


def safe(text: str) -> str:
    """Return `text` reduced to letters, digits, "_" and "-", for a file name."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")[:60]


def is_url(flight: str) -> bool:
    """Return whether a flight is a URL, not a path."""
    return "://" in flight


def shown_flight(flight: str) -> str:
    """Return a flight for messages and tables: of a URL without user, password and query."""
    if is_url(flight):
        scheme, rest = flight.split("://", 1)
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
        authority, slash, path = rest.partition("/")
        flight = f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"
    return one_line(flight)


def fetch(url: str) -> Path:
    """Return the path of a flight's copy in the cache; what is missing there is downloaded.

    Raises SourceError if the URL has another scheme than `SCHEMES` or chains several, the flight
    is larger than `MAX_BYTES` or `MAX_FILES`, has names that lead out of its folder, or cannot be
    fetched.
    """
    shown = shown_flight(url)
    scheme = url.split("://", 1)[0]
    if scheme not in SCHEMES or "::" in url:
        raise SourceError(f"{shown}: expected a single URL of {', '.join(SCHEMES)}")
    digest = hashlib.sha256(url.encode(errors="surrogateescape")).hexdigest()[:32]
    try:
        folder = private_folder(cache_folder(LOGGER.warning) / "flights")
        target = folder / digest / _local_name(url)
    except OSError as error:
        raise SourceError(f"{shown}: cannot be fetched ({one_line(error)})") from None
    try:
        if not target.exists():
            files, root = fsspec.core.url_to_fs(url)
            with atomic_folder(target.parent, mode=0o700) as new:
                _download(files, root, new / target.name)
    except Exception as error:  # each library below fsspec has its own
        if not target.exists():  # another process may have been faster
            raise SourceError(f"{shown}: cannot be fetched ({_reason(error)})") from None
    return target


def _reason(error: Exception) -> str:
    """Return why a download failed, without the URL that most messages hold, and its secrets."""
    if isinstance(error, _RefusedError):
        return one_line(error)
    if isinstance(error, ImportError):  # fsspec's has the one with the name as its cause
        name = error.name or getattr(error.__cause__, "name", None) or "a library for it"
        return f"{type(error).__name__}: {one_line(name)} is not installed"
    details = getattr(error, "strerror", None) or getattr(error, "status", None)
    return f"{type(error).__name__}{f': {one_line(details, 60)}' if details else ''}"


def _local_name(url: str) -> str:
    """Return the last name of a URL, with the suffix that tells the kind of flight."""
    name = PurePosixPath(unquote(urlsplit(url).path))
    suffix = name.suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,8}", name.suffix) else ""
    return f"{safe(name.name.removesuffix(suffix)) or 'flight'}{suffix}"


def _download(files: Any, root: str, target: Path) -> None:
    """Download a file, or all files of a folder; ValueError if they are too large."""
    limit = _Limit()
    found = list(_listed(files, root, target))
    # Not every server tells a size, and not every file system counts what it receives.
    limit.check(sum(files.size(remote) or 0 for remote, _ in found))
    for remote, local in found:
        local.parent.mkdir(parents=True, exist_ok=True)
        files.get_file(remote, str(local), callback=limit)


class _Limit(fsspec.Callback):
    """Ends a download that has become too large."""

    def __init__(self) -> None:
        super().__init__()
        self._received = 0

    def relative_update(self, inc: int = 1) -> None:
        """Count received bytes."""
        self._received += inc
        self.check(self._received)

    def check(self, size: int) -> None:
        """Raise ValueError if a flight of this size is too large."""
        if size > MAX_BYTES:
            raise _RefusedError(f"expected at most {MAX_BYTES / 1e9:g} GB, got more")


def _listed(files: Any, root: str, target: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files of a flight, and where to put them; ValueError for a name outside."""
    if target.suffix in _FILE_SUFFIXES or not files.isdir(root):
        yield root, target
        return
    for remote in sorted(_names(files, root)):
        relative = remote.removeprefix(root.rstrip("/") + "/")
        parts = relative.split("/")
        if relative == remote or not all(map(_is_name, parts)):
            raise _RefusedError("a name in it is outside the flight's folder")
        yield remote, target.joinpath(*parts)


def _names(files: Any, root: str) -> list[str]:
    """Return the files below a folder; `find` would only end with the last folder of a server."""
    names: list[str] = []
    seen = 0
    for _, folders, found in files.walk(root, detail=True, on_error="raise"):
        seen += len(folders) + len(found)
        if seen > MAX_FILES:
            raise _RefusedError(f"more than {MAX_FILES} files and folders")
        names += [entry["name"] for entry in found.values()]
    return names


def _is_name(part: str) -> bool:
    return part not in ("", ".", "..") and "\0" not in part
