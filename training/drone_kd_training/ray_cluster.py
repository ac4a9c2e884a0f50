# SPDX-License-Identifier: AGPL-3.0-or-later
"""A Ray cluster that does what one machine would take too long for. Ray schedules; nothing of our
own does.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

# A cluster answers within two; Ray itself would try for minutes.
_ANSWER_SECONDS = 20.0


class ClusterError(RuntimeError):
    """A cluster cannot be used; the message is one line."""


class Room(NamedTuple):
    """What nobody uses on a cluster, in whole cores and GPUs."""

    cpus: int
    gpus: int


def connect(address: str) -> Room:
    """Connect this process with a cluster, once; every node needs this package.

    Raises:
        ClusterError: Ray is not installed, nothing answers at `address` ("host:port"), or what
            answers is no cluster.
    """
    # Read when Ray is imported: nothing is reported, and its C++ part says nothing of its own.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
    except ImportError as error:
        raise ClusterError(
            f"a cluster needs Ray ({error}): pip install 'drone_kd[cluster]'"
        ) from None
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"expected the cluster's HOST:PORT, got {address!r}")
    if not ray.is_initialized():
        if not _answers(address):
            raise ClusterError(
                f"no Ray cluster answers at {address}: start one with `ray start --head`, and "
                "give the address that it prints"
            )
        ray.init(address=address, logging_level="ERROR", log_to_driver=False)
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
    free = ray.available_resources()
    return Room(int(free.get("CPU", 0)), int(free.get("GPU", 0)))


def each(
    address: str, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]
) -> Iterator[Any]:
    """Call a function with each of some arguments, a task per call; results in order.

    A task has a GPU where the cluster has some, else a core.

    Raises:
        ClusterError: see `connect`; also where the cluster has no room for one task.
    """
    room = connect(address)
    import ray

    if room.cpus < 1:
        raise ClusterError(f"the cluster at {address} has no free core: wait, or add nodes")
    task = ray.remote(num_cpus=1, num_gpus=1 if room.gpus else 0)(function)
    results = [task.remote(*arguments) for arguments in calls]
    for result in results:
        try:
            yield ray.get(result)
        except ray.exceptions.RayError as error:
            raise failure(error) from None


def _answers(address: str) -> bool:
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        asked = subprocess.run(command, capture_output=True, timeout=_ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0


def failure(error: Exception) -> ClusterError:
    """What went wrong in a task, in one line."""
    cause = getattr(error, "cause", None) or error.__cause__ or error
    return ClusterError(f"on the cluster: {type(cause).__name__}: {_first_line(cause)}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
