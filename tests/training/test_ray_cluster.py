# SPDX-License-Identifier: AGPL-3.0-or-later
"""Two nodes of a real Ray cluster on this machine, and addresses that are none."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is not here: pip install 'drone_kd[cluster]'")
pytest.importorskip("rosbags", reason="rosbags is not here: pip install drone_kd[simulation]")

from drone_kd_training.mining import ray_pipeline as mining
from drone_kd_training.ray_cluster import ClusterError, FreeResources, connect
from ray_nodes import HEAD, WORKER, ray_nodes, raylets
from recorded import content, image, scene, write_bag
from tiny_model import tiny_spec, write_bright_cell_model

SECOND = 10**9
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster():
    with ray_nodes(2) as address:
        yield address


@pytest.mark.timeout(900)  # every actor imports torch: minutes on a busy machine
def test_two_nodes_of_which_one_is_killed_give_what_one_process_gives(cluster, tmp_path):
    frames = ((k, image(scene(k // 6, 3 * k), k * SECOND)) for k in range(120))
    bag = write_bag(tmp_path / "bag", (("/camera", k * SECOND, frame) for k, frame in frames))
    spec = tiny_spec(classes=("car", "tree"))
    teacher = write_bright_cell_model(tmp_path / "teacher.onnx", spec)
    command = [sys.executable, "-m", "training", "mine", str(bag), "--teacher", str(teacher)]
    command += ["--student", str(teacher), "--frames", "12", "--output"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'training'}"}
    subprocess.run([*command, str(tmp_path / "one")], check=True, env=environment)

    def kill_worker():
        shards = tmp_path / ".two.mining" / "shards"
        while not (shards.is_dir() and any(shards.iterdir())) and not stop.wait(0.1):
            pass
        for process in raylets(WORKER):
            process.send_signal(signal.SIGKILL)

    stop = threading.Event()
    killer = threading.Thread(target=kill_worker)
    killer.start()
    options = ["--cluster", cluster]
    done = subprocess.run(
        [*command, str(tmp_path / "two"), *options], env=environment, capture_output=True
    )
    stop.set()
    killer.join()
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert content(tmp_path / "two") == content(tmp_path / "one")
    assert not raylets(WORKER)


def test_an_address_where_nothing_answers_is_one_line():
    began = time.monotonic()
    with socket.create_server((HEAD, 0)) as silent:
        port = silent.getsockname()[1]
    with pytest.raises(ClusterError, match="no Ray cluster answers at .*ray start --head") as told:
        connect(f"{HEAD}:{port}")
    assert "\n" not in str(told.value) and time.monotonic() - began < 60
    with pytest.raises(ClusterError, match="expected the cluster's HOST:PORT, got 'auto'"):
        connect("auto")


@pytest.mark.parametrize(("cpus", "gpus", "needed"), [(0, 0, "one"), (1, 1, "two")])
def test_a_cluster_without_room_is_said(monkeypatch, cpus, gpus, needed):
    monkeypatch.setattr(mining, "connect", lambda address: FreeResources(cpus, gpus))
    with pytest.raises(ClusterError, match=f"{cpus} free cores, and mining needs {needed}"):
        mining.Cluster("host:1", "teacher.onnx", None)
