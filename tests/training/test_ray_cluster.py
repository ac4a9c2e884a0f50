# SPDX-License-Identifier: AGPL-3.0-or-later
"""Mining and paired runs on two nodes of a real Ray cluster on this machine."""

import csv
import signal
import socket
import subprocess
import threading

import psutil
import pytest

pytest.importorskip("ray", reason="Ray is not here: pip install 'drone_kd[cluster]'")
pytest.importorskip("rosbags", reason="rosbags is not here: pip install drone_kd[simulation]")

import ray

import ray_nodes
from drone_kd.cli import main
from drone_kd_training import ray_cluster
from drone_kd_training.distillation import compare
from drone_kd_training.mining import ray_pipeline, stages, student_and_teacher
from drone_kd_training.ray_cluster import ClusterError, FreeResources, connect
from mining_flights import flight
from recorded import content
from tiny_model import tiny_spec, write_bright_cell_model
from tiny_training import SIZE

# Every actor and task imports torch: minutes on a busy machine.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def cluster():
    with ray_nodes.ray_nodes(2) as address:
        yield address
        ray.shutdown()


@pytest.mark.slow
def test_killed_node_does_not_change_what_mining_finds(cluster, tmp_path, monkeypatch, capsys):
    bag = flight(tmp_path / "bag", seconds=120)
    spec = tiny_spec(classes=("car", "tree"))
    teacher = write_bright_cell_model(tmp_path / "teacher.onnx", spec)
    command = ["mine", str(bag), "--teacher", str(teacher), "--student", str(teacher)]
    command += ["--frames", "12", "--output"]
    assert main([*command, str(tmp_path / "one")]) == 0

    killed = []

    def kill_worker():
        ray_nodes.wait_for_worker(ray_nodes.gate(), 600)
        for process in ray_nodes.raylets(ray_nodes.WORKER):
            killed.append(process.pid)
            process.send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill_worker)
    killer.start()
    # The worker's batch never ends, so it is lost, and scored again on the head.
    monkeypatch.setattr(stages, "score", ray_nodes.score_on_head_only)
    # Nothing is computed in this process.
    monkeypatch.setattr(student_and_teacher.Models, "predict", None)
    assert main([*command, str(tmp_path / "two"), "--cluster", cluster]) == 0, capsys.readouterr()
    killer.join()
    (pid,) = killed
    assert not psutil.pid_exists(pid) and not ray_nodes.raylets(ray_nodes.WORKER)
    assert content(tmp_path / "two") == content(tmp_path / "one")


@pytest.mark.slow
def test_paired_runs_are_trained_on_the_cluster(
    cluster, tiny_data, tiny_teacher, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(compare, "distill", None)  # nothing is trained in this process
    command = ["compare", "--data", str(tiny_data), "--teacher", str(tiny_teacher)]
    command += ["--student", "aerial-student.yaml", "--output", str(tmp_path / "out")]
    command += ["--epochs", "1", "--imgsz", str(SIZE), "--batch", "6", "--no-val"]
    command += ["--seeds", "3", "--arms", "plain", "distilled", "--cluster", cluster]
    assert main(command) == 0, capsys.readouterr()
    with (tmp_path / "out" / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["seed"]) for row in rows] == [("plain", "3"), ("distilled", "3")]
    for name in ("plain", "distilled"):
        assert (tmp_path / "out" / "runs" / f"{name}-seed3" / "best.pt").is_file()
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.slow
def test_failed_task_is_one_line(cluster):
    with pytest.raises(ClusterError) as error:
        list(ray_cluster.each(cluster, lambda text: int(text), [("1",), ("one",)]))
    assert str(error.value).startswith("on the cluster: ValueError: invalid literal for int()")
    assert "\n" not in str(error.value)


def test_address_without_a_cluster_is_one_line(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.create_server((ray_nodes.HEAD, 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(
        ClusterError, match=r"no Ray cluster answers at .*ray start --head"
    ) as error:
        connect(f"{ray_nodes.HEAD}:{port}")
    assert "\n" not in str(error.value)
    with pytest.raises(ClusterError, match="expected the cluster's HOST:PORT, got 'auto'"):
        connect("auto")


def test_server_that_is_no_cluster_is_one_line(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def time_out(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", time_out)
    with (
        socket.create_server((ray_nodes.HEAD, 0)) as silent,
        pytest.raises(ClusterError, match="no Ray cluster answers"),
    ):
        connect(f"{ray_nodes.HEAD}:{silent.getsockname()[1]}")


@pytest.mark.parametrize(("cpus", "gpus", "needed"), [(0, 0, "one"), (1, 1, "two")])
def test_cluster_without_free_cores_is_refused(monkeypatch, cpus, gpus, needed):
    monkeypatch.setattr(ray_pipeline, "connect", lambda address: FreeResources(cpus, gpus))
    with pytest.raises(ClusterError, match=f"{cpus} free cores, and mining needs {needed}"):
        ray_pipeline.Cluster("host:1", "teacher.onnx", None)
