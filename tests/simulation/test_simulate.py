import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not here")
pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not here")

import cv2
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image
from vision_msgs.msg import Detection2DArray

from drone_kd import cli
from drone_kd.simulation import simulate
from drone_kd.simulation.scene import FlightPlan, fly
from drone_kd.simulation.truth_messages import boxes_of, stamp_ns

SMALL = ("--size", "320x240")


TOPICS = (
    ("image", Image),
    ("camera_info", CameraInfo),
    ("camera/ground_truth", Detection2DArray),
    ("/clock", Clock),
)


class Ears:
    """Hears all that the camera publishes."""

    def __init__(self):
        self.node = rclpy.create_node("ears")
        self.heard = {topic: queue.Queue() for topic, _ in TOPICS}
        for topic, kind in TOPICS:
            self.node.create_subscription(kind, topic, self.heard[topic].put, QoSProfile(depth=99))
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)

    def hear(self, topic, count):
        """Wait for so many messages."""
        deadline = time.monotonic() + 20
        while self.heard[topic].qsize() < count:
            self.executor.spin_once(timeout_sec=0.1)
            if time.monotonic() > deadline:
                pytest.fail(f"heard {self.heard[topic].qsize()} of {count} messages of {topic}")
        return [self.heard[topic].get() for _ in range(count)]

    def hear_out(self, process):
        """Wait until a process has ended; returns its output."""
        while process.poll() is None:
            self.executor.spin_once(timeout_sec=0.1)
        for _ in range(20):
            self.executor.spin_once(timeout_sec=0)
        return process.communicate()[0]

    def all(self, topic):
        """What was heard, as stamps in seconds."""
        messages = [self.heard[topic].get() for _ in range(self.heard[topic].qsize())]
        return np.array([stamp_ns(message.header) for message in messages]) / 1e9


@pytest.fixture
def ears(ros_domain_id):
    rclpy.init()
    made = Ears()
    yield made
    made.node.destroy_node()
    rclpy.try_shutdown()


@pytest.fixture
def start():
    """Start drone-kd simulate; it is ended with the test."""
    started = []

    def run(*options, **environment):
        process = subprocess.Popen(
            [sys.executable, "-m", "drone_kd.cli", "simulate", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment},
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


def test_truth_and_camera_info_have_the_stamps_of_the_images(ears, start):
    start(*SMALL, "--scene", "car-park", "--seed", "3", "--rate", "10")
    truths = ears.hear("camera/ground_truth", 12)
    images, infos = ears.hear("image", 10), ears.hear("camera_info", 10)
    by_stamp = {stamp_ns(truth.header): truth for truth in truths}
    assert {stamp_ns(image.header) for image in images} <= by_stamp.keys()
    assert {stamp_ns(info.header) for info in infos} <= by_stamp.keys()
    assert infos[0].k[0] == infos[0].k[4] == 320 and infos[0].k[2] == 160 and infos[0].k[5] == 120
    # The boxes are those of the flight, whose frames the images tell us.
    wanted = {f.image.tobytes(): f for f in first_frames(40, scene="car-park", seed=3)}
    for image in images:
        frame = wanted[bytes(image.data)]
        rows = boxes_of(by_stamp[stamp_ns(image.header)], "id")
        np.testing.assert_allclose([row[2:] for row in rows], frame.xyxy, atol=0.01)
        assert [row[1] for row in rows] == [str(i) for i in frame.ids]


def first_frames(count, **plan):
    flight = fly(FlightPlan(width=320, height=240, **plan))
    return [next(flight) for _ in range(count)]


def test_simulated_time(ears, start):
    process = start(*SMALL, "--sim-time", "--rate", "20", "--scene", "forest-edge")
    ticks = [tick.clock.sec + tick.clock.nanosec / 1e9 for tick in ears.hear("/clock", 50)]
    assert ticks == sorted(ticks) and ticks[0] < 10
    assert np.median(np.diff(ticks)) < 0.03
    stamps = [stamp_ns(truth.header) / 1e9 for truth in ears.hear("camera/ground_truth", 10)]
    assert 0 < stamps[0] < 15
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0


def test_faults(ears, start):
    process = start(
        *SMALL, "--scene", "forest-edge", "--rate", "20", "--seconds", "8", "--drop", "0.3",
        "--outage", "3.5", "1.5", "--clock-jump", "6.5", "-4", "--delay", "80",
    )  # fmt: skip
    output = ears.hear_out(process)
    assert process.returncode == 0 and "lost on purpose" in output, output
    heard = [ears.all(topic) for topic in ("camera/ground_truth", "image", "camera_info")]
    # Topics are discovered one after the other: what came before all were is left out.
    first = max(stamps[0] for stamps in heard)
    due, delivered, infos = (stamps[stamps >= first] for stamps in heard)
    assert set(delivered) <= set(due) and set(delivered) == set(infos)
    (jump,) = np.flatnonzero(np.diff(due) < 0)
    assert np.diff(due)[jump] == pytest.approx(-3.95, abs=0.3)
    before = due[: jump + 1]
    silence = np.diff(np.sort(delivered[np.isin(delivered, before)])).max()
    assert silence == pytest.approx(1.5, abs=0.6)
    flown = len(due) - 1.5 * 20
    assert 0.1 < 1 - len(delivered) / flown < 0.5


def test_recorded_pictures_with_labels(ears, start, tmp_path):
    for number in range(3):
        picture = np.full((48, 64, 3), 50 * number, np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture)
    rows = [{"frame": 0, "boxes": [["car", 1, 2, 3, 4]]}, {"frame": 2, "boxes": []}]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    start("--images", str(tmp_path), "--labels", str(tmp_path / "labels.jsonl"), "--loop")
    truths = {stamp_ns(m.header): boxes_of(m, "id") for m in ears.hear("camera/ground_truth", 8)}
    for image in ears.hear("image", 6):
        boxes = truths.get(stamp_ns(image.header))
        if boxes is not None:
            assert boxes == ([["car", "", 1, 2, 3, 4]] if image.data[0] == 0 else [])


def test_it_stays_on_this_machine_unless_told_otherwise(monkeypatch):
    for name, value in (
        ("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET"),
        ("ROS_STATIC_PEERS", "drone"),
    ):
        monkeypatch.setenv(name, value)
    seen = {}
    monkeypatch.setattr(
        "drone_kd.simulation.camera_node.main", lambda command: seen.update(os.environ) or 0
    )
    assert cli.main(["simulate", "--network"]) == 0
    assert (seen["ROS_AUTOMATIC_DISCOVERY_RANGE"], seen["ROS_STATIC_PEERS"]) == ("SUBNET", "drone")
    seen.clear()
    assert cli.main(["simulate"]) == 0
    assert seen["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST" and "ROS_STATIC_PEERS" not in seen


def test_defaults_are_those_of_the_node():
    parser = argparse.ArgumentParser()
    simulate.add_options(parser)
    command = simulate.node_arguments(parser.parse_args([]))
    assert "rate:=15.0" in command and "outage:=[0.0, 0.0]" in command


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--scene", "moon"], "invalid choice: 'moon'"),
        (["--size", "big"], "expected WIDTHxHEIGHT in pixels, got 'big'"),
        (["--labels", "x.jsonl"], "--labels belong to --images or --video"),
        (["--altitude", "2"], "altitude_m: expected 15 to 150, got 2.0"),
        (["--rate", "0"], "rate"),
        (["--outage", "-1", "2"], "outage: expected two numbers of seconds"),
        (["--images", "/no/such"], "/no/such: no such image, folder or video"),
        (["--video", "v.mp4", "--labels", "/no.jsonl"], "/no.jsonl: No such file"),
    ],
)
def test_wrong_options_are_one_line_and_2(options, says, ros_domain_id, start):
    process = start(*options)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 2
    assert output.count("\n") == 1 and "error: " in output and says in output
