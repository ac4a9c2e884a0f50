"""TensorRT engine cache with integrity checks. Does not import TensorRT.

An engine (a "plan" in TensorRT) fits one TensorRT version and one GPU, and contains native code
that runs when it is loaded. Each engine is therefore stored in a folder that only this user can
enter, under a hash of everything it depends on. A JSON record with its SHA-256 lies beside it and
is checked before TensorRT gets the engine.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from drone_kd.files import write_bytes

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """Everything an engine depends on; any other value needs another engine."""

    model_sha256: str
    tensorrt: str  # version
    device: str
    compute_capability: str
    multiprocessors: int
    precision: str
    optimisation_level: int
    schema: int = SCHEMA  # version of this list and of the build settings

    def digest(self) -> str:
        """Return the SHA-256 of all fields."""
        return sha256(json.dumps(asdict(self), sort_keys=True).encode())


class EngineStore:
    """Cache entry of one engine: the file `plan_path`, and a JSON record with the same stem.

    `timings_path` has the kernel timings of earlier builds on this GPU, for the next build.
    """

    def __init__(self, key: EngineKey) -> None:
        self._key = key
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base, "drone_kd", "engines")
        name = key.digest()[:32]
        self.plan_path = folder / f"{name}.plan"
        self._record_path = folder / f"{name}.json"
        self._lock_path = folder / f"{name}.lock"
        device = (key.tensorrt, key.device, key.compute_capability, key.multiprocessors)
        self.timings_path = folder / f"{sha256(repr(device).encode())[:32]}.timings"

    @contextmanager
    def locked(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Lock this entry against other processes; call `on_wait` if another one has the lock.

        OSError: the cache folder cannot be created or written.
        """
        _make_private(self.plan_path.parent)
        with self._lock_path.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def read(self) -> tuple[bytes | None, str]:
        """Return the checked bytes, or None and why not ("" if there is no engine yet)."""
        try:
            record = json.loads(self._record_path.read_bytes())
            plan = self.plan_path.read_bytes()
        except FileNotFoundError:
            return None, ""
        except (OSError, ValueError) as error:
            return None, f"cannot be read ({error})"
        if not isinstance(record, dict) or record.get("key") != asdict(self._key):
            return None, "was built for something else"
        if record.get("plan_bytes") != len(plan):
            return None, f"is truncated ({len(plan)} of {record.get('plan_bytes')} bytes)"
        if record.get("plan_sha256") != sha256(plan):
            return None, "was altered"
        return plan, ""

    def write(self, plan: bytes, built: dict[str, str | float]) -> None:
        """Store an engine, and informative entries about its build in the record.

        OSError: writing failed; an older engine stays, if there was one.
        """
        record = {"key": asdict(self._key), "plan_bytes": len(plan), "plan_sha256": sha256(plan)}
        record |= built
        # In this order: after a power cut between the two, `read` sees that the record differs.
        write_bytes(self.plan_path, plan)
        write_bytes(self._record_path, json.dumps(record, indent=1).encode() + b"\n")

    def remove(self) -> None:
        """Remove the engine and its record."""
        self._record_path.unlink(missing_ok=True)
        self.plan_path.unlink(missing_ok=True)


def sha256(content: bytes) -> str:
    """Return the SHA-256 as 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def _make_private(folder: Path) -> None:
    """Create a folder that only this user can enter, because engines contain native code."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.geteuid():
        raise PermissionError(
            f"{folder} belongs to another user (uid {status.st_uid}): engines contain native "
            "code, so they need a folder of your own; set XDG_CACHE_HOME to one"
        )
    if stat.S_IMODE(status.st_mode) != 0o700:
        folder.chmod(0o700)
