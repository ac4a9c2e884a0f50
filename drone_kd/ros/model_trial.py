"""Trial of a model in a process of its own, which a model that hangs or crashes does not outlive.

The child runs the model on two images, and makes and serializes their messages. It has a lower
priority than the node, without an NVIDIA GPU a limit of memory, and ends with the node. If memory
runs out, the kernel ends the child first.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from drone_kd.core.model_spec import ModelError
from drone_kd.parsing import parse_json
from drone_kd.ros.params import Settings
from drone_kd.text import one_line

if TYPE_CHECKING:
    from drone_kd.backends.model_file import ModelFile

# Of the memory that is free: the node and the rest of the machine need some, too.
_MEMORY_SHARE = 0.5
_NICENESS = 10
_SHOWN_CHARACTERS = 400
_OUTPUT_BYTES = 1_000_000
# Until a request to stop is noticed.
_POLL_SECONDS = 0.2
_MEMINFO = Path("/proc/meminfo")
_GPUS = "/dev/nvidia0", "/dev/nvhost-gpu", "/dev/nvgpu"  # the latter two: of a Jetson
_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
# It imports from where this process does; `-m` would add the working directory.
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.buffer.readline()); "
    "from drone_kd.ros.model_trial import main; main()"
)


class Trial:
    """Runs a model in a child process; `cancel` ends it from another thread.

    It ends, too, once `is_stopping`, which is asked by another thread, returns True.
    """

    def __init__(self, is_stopping: Callable[[], bool] = lambda: False) -> None:
        self._is_stopping = is_stopping
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_cancelled = self._is_expired = False

    def __call__(self, file: ModelFile, settings: Settings) -> None:
        """Try a model; ModelError: it is unusable, takes too long or too much memory."""
        task = {
            "path": os.fspath(file.path),
            "sha256": file.sha256,
            "metadata": dict(file.metadata),
            "settings": settings.to_json(),
            "memory": _memory_limit(),
        }
        head = json.dumps(sys.path), json.dumps(task)
        seconds = settings.swap_timeout_s
        with self._started() as process, ended_after(seconds, self._is_stopping, self._end):
            assert process.stdin is not None and process.stdout is not None
            # It may have ended before it has read everything.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write("\n".join((*head, "")).encode())
                process.stdin.write(file.content)
                process.stdin.close()
            output = process.stdout.read(_OUTPUT_BYTES)
            process.wait()
        if self._is_expired:
            raise ModelError(f"its trial took longer than {seconds:g} s (swap_timeout_s)")
        if self._is_cancelled:
            raise ModelError("its trial was cancelled")
        _check(process.returncode, output)

    def cancel(self) -> None:
        """End the trial."""
        self._end(is_late=False)

    def _end(self, is_late: bool) -> None:
        with self._lock:
            self._is_cancelled, self._is_expired = True, is_late
            if self._process is not None:
                _kill(self._process)

    @contextlib.contextmanager
    def _started(self) -> Iterator[subprocess.Popen[bytes]]:
        with self._lock:
            if self._is_cancelled:
                raise ModelError("its trial was cancelled")
            # In a session of its own: all that it starts can be killed with it.
            process = self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            with self._lock:
                _kill(process)
                self._process = None
            _close(process)


@contextlib.contextmanager
def ended_after(
    seconds: float, is_stopping: Callable[[], bool], end: Callable[[bool], object]
) -> Iterator[None]:
    """Call `end` in another thread after a time, unless the block has ended by then.

    Args:
        seconds: the time.
        is_stopping: True: end it now.
        end: called with whether the time is over.
    """
    done = threading.Event()
    deadline = monotonic() + seconds

    def watch() -> None:
        while not done.wait(min(_POLL_SECONDS, max(deadline - monotonic(), 0.0))):
            is_late = monotonic() >= deadline
            if is_late or is_stopping():
                end(is_late)
                return

    threading.Thread(target=watch, name="time limit", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _close(process: subprocess.Popen[bytes]) -> None:
    """Close the pipes of a process that has been killed, and wait for its end."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    process.wait()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, unless it has ended, and what it has started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _check(code: int, output: bytes) -> None:
    """Raise ModelError unless the child has reported that the model works."""
    try:
        problem = parse_json(output, "trial")["problem"]
    except (ValueError, LookupError, TypeError):
        if code < 0:
            problem = f"its trial was ended by {signal.Signals(-code).name}"
        else:
            problem = f"its trial ended with exit code {code}"
    if problem:
        raise ModelError(one_line(problem, _SHOWN_CHARACTERS))


def _memory_limit() -> int:
    """Return how many bytes the child may allocate; 0: no limit."""
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return 0
    sizes = {name: value.split()[0] for name, _, value in (line.partition(":") for line in lines)}
    return int(int(sizes.get("MemAvailable", 0)) * 1024 * _MEMORY_SHARE)


def main() -> None:
    """Run in the child: read the task and the model from standard input, write the problem."""
    task = parse_json(sys.stdin.buffer.readline(), "task")
    # Children of a killed node go on otherwise, as may an endless loop.
    getattr(ctypes.CDLL(None), "prctl", lambda *_: 0)(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # CUDA reserves far more memory than it uses.
    if task["memory"] and not any(Path(device).exists() for device in _GPUS):
        resource.setrlimit(resource.RLIMIT_DATA, (task["memory"], task["memory"]))
    try:
        problem = ""
        _try(task, sys.stdin.buffer.read())
    except Exception as error:  # of any kind: it is the answer
        problem = one_line(error, _SHOWN_CHARACTERS) or type(error).__name__
        # Runtimes have an error of their own.
        if isinstance(error, MemoryError) or "allocate memory" in str(error.__cause__):
            problem = f"it needs more than {task['memory'] / 1e6:.0f} MB, half of the free memory"
    print(json.dumps({"problem": problem}), flush=True)
    # Threads of the runtime may hang.
    os._exit(0)


def _try(task: Mapping[str, Any], content: bytes) -> None:
    """Open a model, run it on a black and on a textured image, and serialize the messages."""
    import numpy as np
    from rclpy.serialization import serialize_message
    from std_msgs.msg import Header

    from drone_kd.backends import open_backend
    from drone_kd.backends.model_file import ModelFile
    from drone_kd.ros.detection_messages import to_detection_array, to_label_info

    settings = Settings.from_json(task["settings"])
    backend = open_backend(
        ModelFile(Path(task["path"]), content, task["sha256"], task["metadata"]),
        runtime=settings.runtime,
        allow_fallback=settings.allow_fallback,
        may_build=False,
        progress=lambda line: None,
    )
    spec, detector = backend.spec, settings.detector(backend)
    serialize_message(to_label_info(spec.classes, settings.confidence, Header()))
    shape = spec.input_height, spec.input_width, 3
    for image in (
        np.zeros(shape, np.uint8),
        np.random.default_rng(0).integers(0, 256, shape, np.uint8),
    ):
        found = detector(image)
        serialize_message(to_detection_array(found, spec.classes, Header()))
