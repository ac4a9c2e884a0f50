# SPDX-License-Identifier: AGPL-3.0-or-later
"""Nodes of a real Ray cluster on this machine, each with one core and its own address."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from drone_kd_training.mining.student_and_teacher import Models

_GATE = "DRONE_KD_TEST_GATE"
HEAD, WORKER = "127.0.0.2", "127.0.0.3"
ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def ray_nodes(count: int) -> Iterator[str]:
    """Start one or two nodes, yield the address of the first, and kill both at the end."""
    with socket.create_server((HEAD, 0)) as free:
        port = free.getsockname()[1]
    address = f"{HEAD}:{port}"
    temporary = Path("/tmp") / f"drone_kd-ray-{os.getpid()}"  # sockets want short paths
    (temporary / "gate").mkdir(parents=True)
    os.environ[_GATE] = str(temporary / "gate" / "worker-has-work")
    try:
        _start(
            "--head", f"--node-ip-address={HEAD}", f"--port={port}", "--include-dashboard=false",
            f"--temp-dir={temporary}",
        )  # fmt: skip
        if count == 2:
            _start(f"--address={address}", f"--node-ip-address={WORKER}")
        yield address
    finally:
        del os.environ[_GATE]
        _kill(temporary)


def _start(*arguments: str) -> None:
    environment = {
        **os.environ,
        "RAY_USAGE_STATS_ENABLED": "0",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'training'}:{ROOT / 'tests' / 'helpers'}",
        # A dead node is noticed after seconds instead of a minute.
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "5000",
        "RAY_health_check_failure_threshold": "2",
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--disable-usage-stats"]
    options = ["--num-cpus=1", "--object-store-memory=1000000000"]
    subprocess.run(
        [*command, *options, *arguments], check=True, capture_output=True, env=environment
    )


def _kill(temporary: Path) -> None:
    ours = [
        p
        for p in psutil.process_iter(["cmdline"])
        if str(temporary) in " ".join(p.info["cmdline"] or ())
    ]
    ours += [child for p in ours for child in p.children(recursive=True)]
    for process in ours:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(ours, timeout=10)
    shutil.rmtree(temporary, ignore_errors=True)


def score_on_head_only(batch: list, models: Models) -> list:
    """Score a batch on the head node; keep the worker node busy with it forever.

    A stage for the actors, in place of `stages.score`. The head waits until the worker has work:
    whoever kills the worker then, kills it in the middle of a batch.
    """
    import ray

    from drone_kd_training.mining.stages import score

    gate = Path(os.environ[_GATE])
    if ray.util.get_node_ip_address() == WORKER:
        gate.touch()
        while True:
            time.sleep(60)  # until this process is killed
    wait_for_worker(gate, 300)
    return score(batch, models)


def wait_for_worker(gate: Path, seconds: float) -> None:
    """Wait until the worker node has begun a batch of `score_on_head_only`."""
    deadline = time.monotonic() + seconds
    while not gate.exists():
        if time.monotonic() > deadline:
            raise TimeoutError("the worker node got no work")
        time.sleep(0.1)  # a file of another process: there is nothing to wait on


def gate() -> Path:
    """Return the file that tells that the worker node has begun a batch."""
    return Path(os.environ[_GATE])


def raylets(ip: str) -> list[psutil.Process]:
    """Return the raylet processes of a node."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if "raylet/raylet " in line and f"--node_ip_address={ip}" in line:
            found.append(process)
    return found
