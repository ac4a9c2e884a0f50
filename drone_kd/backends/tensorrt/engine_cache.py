"""TensorRT engine cache with integrity checks. Does not import TensorRT.

An engine (a "plan" in TensorRT) fits one TensorRT version and one GPU, and contains native code
that runs when it is loaded. Each engine is therefore stored in a folder that only this user can
enter, under a hash of everything it depends on. A JSON record with its SHA-256 lies beside it and
is checked before TensorRT gets the engine.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from drone_kd.files import open_private_folder, read_private, write_private, write_private_files
from drone_kd.parsing import ParseError, parse_json
from drone_kd.paths import cache_folder
from drone_kd.text import one_line

_MAX_RECORD_BYTES, _MAX_BYTES = 1_000_000, 1 << 32
_READ_ONLY = (errno.EROFS, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_MEGA = 1e6
_MAX_RECORDS = 1000  # that are compared
SCHEMA = 3


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """Everything an engine depends on; any other value needs another engine."""

    model_sha256: str
    tensorrt: str  # version
    device: str
    compute_capability: str
    multiprocessors: int
    board: str  # these three: `machine.gpu_state`; kernels are chosen by their speed
    power_mode: str
    driver: str
    precision: str
    optimisation_level: int
    schema: int = SCHEMA  # version of this list and of the build settings

    def digest(self) -> str:
        """Return the SHA-256 of all fields."""
        return sha256(json.dumps(asdict(self), sort_keys=True).encode())


class EngineStore:
    """Cache entry of one engine: the file `plan_path`, and a JSON record with the same stem.

    A file beside it has the kernel timings of earlier builds on this GPU, in this power mode, for
    the next build.
    All methods but `locked` need its lock. They use the folder that `locked` has opened and
    checked, also if another one has taken its path. `progress` is called with lines of text.

    OSError: there is no folder for caches.
    """

    def __init__(self, key: EngineKey, progress: Callable[[str], None]) -> None:
        self._key = key
        self._progress = progress
        name = key.digest()[:32]
        self.plan_path = cache_folder(progress) / "engines" / f"{name}.plan"
        self._plan, self._record, self._lock = f"{name}.plan", f"{name}.json", f"{name}.lock"
        others = ("model_sha256", "precision")
        device = {name: value for name, value in asdict(key).items() if name not in others}
        self._timings = f"{sha256(repr(device).encode())[:32]}.timings"
        self._folder = self._locked = -1  # descriptors

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Open the folder, and lock this entry against other processes.

        A folder that cannot be written is opened without the lock: its engines can be read.
        OSError: the cache folder cannot be created, or is not this user's alone.
        """
        with contextlib.ExitStack() as stack:
            self._folder = stack.enter_context(open_private_folder(self.plan_path.parent))
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                lock = os.open(self._lock, flags, 0o600, dir_fd=self._folder)
            except OSError as error:
                if error.errno not in _READ_ONLY:
                    raise
                self._locked = -1
                yield
                return
            stack.callback(os.close, lock)
            self._locked = lock
            try:
                _lock(lock, self._progress)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                # Two builds at once cost time; each stores a whole engine.
                self._progress(
                    f"{one_line(self.plan_path.parent)} has no locks: building without one"
                )
            yield

    def read(self) -> tuple[bytes | None, str]:
        """Return the checked bytes, or None and why not ("" if there is no engine yet)."""
        try:
            content = read_private(self._folder, self._record, _MAX_RECORD_BYTES)
            record = parse_json(content, self._record)
            plan = read_private(self._folder, self._plan, _MAX_BYTES)
        except FileNotFoundError:
            return None, ""
        except (OSError, ParseError) as error:
            return None, f"cannot be read ({error})"
        if not isinstance(record, dict) or record.get("key") != asdict(self._key):
            return None, "was built for something else"
        if record.get("plan_bytes") != len(plan):
            return (
                None,
                f"is truncated ({len(plan)} of {one_line(record.get('plan_bytes'))} bytes)",
            )
        if record.get("plan_sha256") != sha256(plan):
            return None, "was altered"
        return plan, ""

    def require_space(self, size: int) -> None:
        """Raise OSError unless the disk takes `size` bytes, for an error before a build."""
        if self._locked < 0:
            raise OSError(
                f"expected a folder that can be written, got {one_line(self.plan_path.parent)}"
            )
        disk = os.fstatvfs(self._folder)
        free = disk.f_bavail * disk.f_frsize
        if free < size:
            raise OSError(
                f"expected {size / _MEGA:.0f} MB of free disk in "
                f"{one_line(self.plan_path.parent)}, found {free / _MEGA:.0f} MB"
            )

    @contextmanager
    def building(self) -> Iterator[bool]:
        """Mark a build in the lock's file; yield whether an earlier one did not end its block."""
        was_killed = os.fstat(self._locked).st_size > 0
        os.ftruncate(self._locked, 1)
        try:
            yield was_killed
        finally:
            os.ftruncate(self._locked, 0)

    def read_timings(self) -> bytes:
        """Return the timings of earlier builds on this GPU; empty: there are none."""
        try:
            return read_private(self._folder, self._timings, _MAX_BYTES)
        except OSError:
            return b""

    def write(self, plan: bytes, timings: bytes, built: dict[str, str | float]) -> None:
        """Store an engine, its timings, and informative entries about its build in the record.

        OSError: writing the engine failed; an older one stays, if there was one.
        """
        record = {"key": asdict(self._key), "plan_bytes": len(plan), "plan_sha256": sha256(plan)}
        record |= built
        # After a power cut between the two `read` sees that the record differs.
        write_private_files(self._folder, {self._plan: plan, self._record: _json(record)})
        try:
            write_private(self._folder, self._timings, timings)
        except OSError as error:
            self._progress(f"the kernel timings for the next build are not stored: {error}")

    def entry(self, name: str) -> str:
        """Return a text that `note` or `refuse` has stored; empty: there is none."""
        value = self._read_record(self._record).get(name, "")
        return value if isinstance(value, str) else ""

    def note(self, name: str, value: str) -> None:
        """Store a text in the record of an engine. OSError: writing failed."""
        self._write_record(self._read_record(self._record) | {name: value})

    def refuse(self, reason: str) -> None:
        """Remove the engine; store why, as the entry "refused". OSError: writing failed."""
        self.remove()
        self._write_record({"key": asdict(self._key), "refused": reason})

    def differences(self) -> str:
        """Return how the key differs from those of this model's other engines; empty: none."""
        own = asdict(self._key)
        files = os.listdir(self._folder)  # noqa: PTH208  a descriptor
        names = sorted(name for name in files if name.endswith(".json"))
        found = []
        for record in map(self._read_record, names[:_MAX_RECORDS]):
            key = record.get("key")
            if "plan_sha256" not in record or not isinstance(key, dict):
                continue
            if key.get("model_sha256") == own["model_sha256"] and key != own:
                found += [
                    f"{name} {one_line(key.get(name), 40)}, now {one_line(value, 40)}"
                    for name, value in own.items()
                    if key.get(name) != value
                ]
        return "; ".join(dict.fromkeys(found))

    def _read_record(self, name: str) -> dict[str, Any]:
        try:
            record = parse_json(read_private(self._folder, name, _MAX_RECORD_BYTES), name)
        except (OSError, ParseError):
            return {}
        return record if isinstance(record, dict) else {}

    def _write_record(self, record: dict[str, Any]) -> None:
        write_private(self._folder, self._record, _json(record))

    def remove(self) -> None:
        """Remove the engine and its record."""
        for name in (self._record, self._plan):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._folder)


def _json(record: dict[str, Any]) -> bytes:
    return json.dumps(record, indent=1).encode() + b"\n"


def _lock(descriptor: int, progress: Callable[[str], None]) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        progress("another process builds this engine; waiting for it")
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def sha256(content: bytes) -> str:
    """Return the SHA-256 as 64 hex digits."""
    return hashlib.sha256(content).hexdigest()
