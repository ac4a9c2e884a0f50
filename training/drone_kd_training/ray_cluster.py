# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tasks on a Ray cluster; Ray does all the scheduling."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from drone_kd_training.isolation import DOWNLOADS, TRUST
from drone_kd_training.quiet import first_line

# A cluster answers within two seconds; Ray itself would try for minutes.
_ANSWER_SECONDS = 20.0
# What the user decided here, for the tasks on other machines.
_SETTINGS = (TRUST, DOWNLOADS)


class ClusterError(RuntimeError):
    """A cluster cannot be used; the message is one line."""


class FreeResources(NamedTuple):
    """Free resources of a cluster, in whole cores and GPUs."""

    cpus: int
    gpus: int


def connect(address: str) -> FreeResources:
    """Connect this process to a cluster at "host:port", once; every node needs this package.

    Raises ClusterError if Ray is not installed, or no cluster answers.
    """
    # Ray reads these when imported: no usage statistics, no log lines of its C++ part.
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
        if not _answers(host, int(port)):
            raise ClusterError(
                f"no Ray cluster answers at {address}: start one with `ray start --head`, and "
                "give the address that it prints"
            )
        settings = {name: os.environ[name] for name in _SETTINGS if name in os.environ}
        ray.init(
            address=address,
            logging_level="ERROR",
            log_to_driver=False,
            include_dashboard=False,
            runtime_env={"env_vars": settings} if settings else None,
        )
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
    free = ray.available_resources()
    return FreeResources(int(free.get("CPU", 0)), int(free.get("GPU", 0)))


def each(
    address: str, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]
) -> Iterator[Any]:
    """Call a function once per tuple of arguments, a task each; yield results in order.

    A task takes a core, and a GPU if the cluster has any. Raises ClusterError, see `connect`; also
    if no core is free or a task failed.
    """
    free = connect(address)
    import ray

    if free.cpus < 1:
        raise ClusterError(f"the cluster at {address} has no free core: wait, or add nodes")
    task = ray.remote(num_cpus=1, num_gpus=1 if free.gpus else 0)(function)
    results = [task.remote(*arguments) for arguments in calls]
    for result in results:
        try:
            yield ray.get(result)
        except ray.exceptions.RayError as error:
            raise failure(error) from None


def _answers(host: str, port: int) -> bool:
    address = f"{host}:{port}"
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        # Where nothing listens, Ray would use up the whole time.
        socket.create_connection((host, port), timeout=_ANSWER_SECONDS).close()
        status = subprocess.run(command, capture_output=True, timeout=_ANSWER_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return status.returncode == 0


def failure(error: Exception) -> ClusterError:
    """Return the error of a task with a one-line message."""
    cause = getattr(error, "cause", None) or error.__cause__ or error
    return ClusterError(f"on the cluster: {type(cause).__name__}: {first_line(cause)}")
