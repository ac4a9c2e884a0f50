# SPDX-License-Identifier: AGPL-3.0-or-later
"""Nodes of a real Ray cluster on this machine, each with one core and an address of its own."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

HEAD, WORKER = "127.0.0.2", "127.0.0.3"
ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def ray_nodes(count: int) -> Iterator[str]:
    """One node or two; yields the address of the first, and kills what is left afterwards."""
    with socket.create_server((HEAD, 0)) as free:
        port = free.getsockname()[1]
    address = f"{HEAD}:{port}"
    temporary = Path("/tmp") / f"drone_kd-ray-{os.getpid()}"  # sockets want short paths
    try:
        _start(
            "--head", f"--node-ip-address={HEAD}", f"--port={port}", "--include-dashboard=false",
            f"--temp-dir={temporary}",
        )  # fmt: skip
        if count == 2:
            _start(f"--address={address}", f"--node-ip-address={WORKER}")
        yield address
    finally:
        _kill(temporary)


def _start(*arguments: str) -> None:
    environment = {
        **os.environ,
        "RAY_USAGE_STATS_ENABLED": "0",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'training'}",
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


def raylets(ip: str) -> list[psutil.Process]:
    """The raylet of a node."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if "raylet/raylet " in line and f"--node_ip_address={ip}" in line:
            found.append(process)
    return found
