"""Where finished engines are kept, and why one of them may be trusted.

An engine (TensorRT calls it a plan) fits one TensorRT version and one GPU, and holds native code
that runs when it is loaded. So each lies in a folder of this user alone, under a name made of
everything it depends on, beside a JSON file with its SHA-256, which is checked before TensorRT
sees a byte of it. No TensorRT in here.
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

from drone_kd.files import write_whole

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """What an engine depends on; another value of any of them is another engine.

    Attributes:
        model_sha256: of the model.onnx.
        tensorrt: version of the TensorRT that runs here.
        device: the GPU's name.
        compute_capability: e.g. "8.7".
        multiprocessors: how many the GPU has.
        precision: as the model file says.
        optimisation_level: what the builder was asked for.
        schema: version of this list and of how engines are built.
    """

    model_sha256: str
    tensorrt: str
    device: str
    compute_capability: str
    multiprocessors: int
    precision: str
    optimisation_level: int
    schema: int = SCHEMA

    def digest(self) -> str:
        """Return the SHA-256 of all of it."""
        return sha256(json.dumps(asdict(self), sort_keys=True).encode())


class EngineStore:
    """The place of one engine in the user's cache.

    Attributes:
        plan_path: the engine; beside it lies its record, a JSON file.
        timings_path: what builds measured of this GPU's kernels, for engines to come.
    """

    def __init__(self, key: EngineKey) -> None:
        self._key = key
        folder = cache_folder()
        name = key.digest()[:32]
        self.plan_path = folder / f"{name}.plan"
        self._record_path = folder / f"{name}.json"
        self._lock_path = folder / f"{name}.lock"
        device = (key.tensorrt, key.device, key.compute_capability, key.multiprocessors)
        self.timings_path = folder / f"{sha256(repr(device).encode())[:32]}.timings"

    @contextmanager
    def locked(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold this engine alone; `on_wait` is called if another process holds it.

        Raises:
            OSError: the cache folder cannot be made or written.
        """
        _make_private(self.plan_path.parent)
        with open(self._lock_path, "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def read(self) -> tuple[bytes | None, str]:
        """Return the engine's bytes if they can be trusted, else None and why not.

        The reason is empty where there simply is none yet.
        """
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
        """Keep a finished engine.

        Args:
            plan: the engine's bytes.
            built: for people: when, how long it took.

        Raises:
            OSError: it cannot be written; an older one is still there, or none.
        """
        record = {
            "key": asdict(self._key),
            "plan_bytes": len(plan),
            "plan_sha256": sha256(plan),
            **built,
        }
        # In this order: after a power cut between the two the record does not fit, which is seen.
        write_whole(self.plan_path, plan)
        write_whole(self._record_path, json.dumps(record, indent=1).encode() + b"\n")

    def remove(self) -> None:
        """Remove the engine and its record."""
        self._record_path.unlink(missing_ok=True)
        self.plan_path.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Return the folder of this user's engines: drone_kd in XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "drone_kd" / "engines"


def sha256(content: bytes) -> str:
    """Return the SHA-256 as 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def _make_private(folder: Path) -> None:
    """Make a folder that only this user can enter; what runs as native code comes from it.

    Raises:
        OSError: it cannot be made, or is not ours.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise PermissionError(
            f"{folder} belongs to another user (uid {found.st_uid}): engines hold native code, so "
            "they are kept in a folder of your own; set XDG_CACHE_HOME to one"
        )
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)
