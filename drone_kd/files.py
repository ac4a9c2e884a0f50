"""Atomic writes of files and folders, folders for one user, and content hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from drone_kd.text import one_line

_CHUNK = 1 << 20
_DEVICES = Path("/dev")
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def atomic_file(path: Path, suffix: str = ".tmp") -> Iterator[Path]:
    """Yield a new empty file beside `path`; it replaces `path` when the block succeeds.

    A reader sees either the old or the complete new content, also after a power failure. A link
    at `path` is replaced, not followed. The mode is that of the replaced file; without one it
    follows the umask. The folder has to exist. `suffix` is that of the temporary file, for writers
    that choose a format by it. After any exception `path` is as it was and the temporary file is
    gone. OSError: `path` is, or links to, a folder, a device or a pipe, or cannot be written; it
    names `path`, not the temporary file.
    """
    mode = replaced_mode(path)
    temporary = _unpredictable(path, suffix)
    with _named(path, temporary):
        temporary.open("xb").close()
        try:
            if mode is not None:
                temporary.chmod(mode | stat.S_IRUSR | stat.S_IWUSR)
            yield temporary
            sync(temporary)
            if mode is not None:
                temporary.chmod(mode)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    sync(path.parent)


@contextlib.contextmanager
def _named(path: Path, temporary: Path) -> Iterator[None]:
    """Name `path` in an OSError that names `temporary`, or a file in it."""
    try:
        yield
    except OSError as error:
        name = str(error.filename)
        if not name.startswith(str(temporary)):
            raise
        shown = f"{path}{name.removeprefix(str(temporary))}"
        raise OSError(error.errno, error.strerror, shown) from error


def check_writable(path: Path) -> None:
    """Check before the work that a file can be written at `path`, whose folder need not exist.

    OSError: `path` cannot be replaced, or no file can be made in its folder.
    """
    replaced_mode(path)
    folder = next(p for p in (path.parent, *path.parent.absolute().parents) if p.exists())
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{one_line(path)}: expected a folder that can be written, got {one_line(folder)}"
        )


def replaced_mode(path: Path) -> int | None:
    """Return the permissions of the file that a result replaces; None: there is none, or a link.

    OSError: something else is there, which is never replaced.
    """
    try:
        kind, mode = path.stat().st_mode, path.lstat().st_mode
    except FileNotFoundError:
        return None
    # The links in /dev, such as stdout, may well lead to a file.
    if not stat.S_ISREG(kind) or path.parent.resolve() == _DEVICES:
        raise OSError(f"{one_line(path)}: expected a file to replace, or none, got another kind")
    return None if stat.S_ISLNK(mode) else stat.S_IMODE(mode) & 0o777


@contextlib.contextmanager
def atomic_folder(path: Path, mode: int = 0o777) -> Iterator[Path]:
    """Yield a new folder beside `path`; it becomes `path` when the block succeeds.

    The folder appears with all its files. Unlike `atomic_file` this does not wait until they are
    on the disk: a power failure may still take the content of the newest ones. An empty folder at
    `path` is replaced, parents are made, and `mode` holds before the umask. OSError: `path` is a
    file or a folder with content, or cannot be written. After any exception it is as it was and
    the temporary folder is gone.
    """
    temporary = _unpredictable(path, ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _named(path, temporary):
        temporary.mkdir(mode=mode)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; see `atomic_file`."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, and make its parent folders; see `atomic_file`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.encode())


def private_folder(path: str | Path) -> Path:
    """Make a folder that only this user can enter, with its parents; return its path.

    An existing folder is accepted if it is this user's and nobody else could write into it; it is
    closed to readers. Where the content is trusted, use `open_private_folder`: the path may mean
    another folder a moment later.

    Raises:
        OSError: the folder is a link, belongs to another user, can be written by others, or cannot
            be made; the message is one line.
    """
    with open_private_folder(path):
        return Path(path)


@contextlib.contextmanager
def open_private_folder(path: str | Path) -> Iterator[int]:
    """Yield a descriptor of a private folder, for the `dir_fd` of `os.open` and the like.

    Whoever renames the folder or puts a link in its place does not change what the descriptor
    means. OSError: see `private_folder`.
    """
    path = Path(path)
    try:
        _make_private(path)
        descriptor = os.open(path, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = error.strerror if isinstance(error, OSError) else error
        if os.path.islink(path):  # noqa: PTH114  Path.is_symlink() raises for some names
            reason = "it is a link; remove the link, or name the folder that it leads to"
        raise OSError(
            f"{one_line(path)}: expected a folder of your own, no file and no link: {reason}"
        ) from None
    try:
        _check_private(descriptor, path)
        yield descriptor
    finally:
        os.close(descriptor)


def read_private(folder: int, name: str, limit: int) -> bytes:
    """Return the bytes of a file of `open_private_folder`, at most `limit` of them.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is a link, larger, no regular file, or can be written by others.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, dir_fd=folder), "rb") as file:
        status = os.fstat(file.fileno())
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{one_line(name)}: expected a file, got another kind")
        if status.st_uid != os.geteuid() or mode & _WRITABLE_BY_OTHERS:
            got = f"one of uid {status.st_uid} with mode {mode:04o}"
            raise PermissionError(f"{one_line(name)}: expected a file of your own, got {got}")
        if status.st_size > limit:
            raise OSError(f"{one_line(name)}: expected at most {limit} bytes, got more")
        return file.read(limit)


def write_private(folder: int, name: str, content: bytes) -> None:
    """Write a file of `open_private_folder` atomically, with mode 0600; see `atomic_file`."""
    write_private_files(folder, {name: content})


def write_private_files(folder: int, contents: Mapping[str, bytes]) -> None:
    """Write files as `write_private` does, in this order; none, unless the disk has room for all.

    A power failure may still come between two of them.
    """
    temporary: dict[str, str] = {}
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        for name, content in contents.items():
            path = _unpredictable(Path(name), ".tmp").name
            with os.fdopen(os.open(path, flags, 0o600, dir_fd=folder), "wb") as file:
                temporary[name] = path
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for name, path in temporary.items():
            os.replace(path, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        for path in temporary.values():
            with contextlib.suppress(OSError):
                os.unlink(path, dir_fd=folder)
        raise
    os.fsync(folder)


def _make_private(folder: Path) -> None:
    """Make a folder and its missing parents, each for this user only."""
    with contextlib.suppress(FileExistsError):
        try:
            folder.mkdir(mode=0o700)
        except FileNotFoundError:
            _make_private(folder.parent)
            folder.mkdir(mode=0o700)


def _check_private(descriptor: int, path: Path) -> None:
    """Raise PermissionError unless an open folder is this user's alone; close it to readers."""
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid():
        raise PermissionError(
            f"{one_line(path)}: expected a folder of your own, got one of uid {status.st_uid}"
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & _WRITABLE_BY_OTHERS:
        raise PermissionError(
            f"{one_line(path)}: expected a folder that only you can write, got mode {mode:04o}, "
            "so its content is not trusted; remove it, or if you know every file in it: "
            f"chmod go-w {one_line(path)}"
        )
    if mode & 0o777 != 0o700:
        os.fchmod(descriptor, 0o700)


def _unpredictable(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{suffix}")


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
