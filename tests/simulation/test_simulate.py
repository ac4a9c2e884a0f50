import argparse
import itertools
import json
import os
import re
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
from drone_kd.simulation.simulate import ros_arguments
from drone_kd.simulation.truth_messages import boxes_of, stamp_ns
from node_process import WAIT_SECONDS

SMALL = ("--size", "320x240")


TOPICS = (
    ("image", Image),
    ("camera_info", CameraInfo),
    ("camera/ground_truth", Detection2DArray),
    ("/clock", Clock),
)


class Subscriber:
    """Collects all messages of the camera with their arrival times."""

    def __init__(self):
        self.node = rclpy.create_node("subscriber")
        self.received: dict[str, list] = {topic: [] for topic, _ in TOPICS}
        for topic, kind in TOPICS:
            self.node.create_subscription(kind, topic, self._callback(topic), QoSProfile(depth=99))
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)

    def _callback(self, topic):
        return lambda message: self.received[topic].append((message, time.time()))

    def messages(self, topic):
        return [message for message, _ in self.received[topic]]

    def by_stamp(self, topic):
        return {stamp_ns(message.header): message for message in self.messages(topic)}

    def spin_until(self, condition):
        """Spin until a condition holds; returns its value."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not (value := condition()):
            self.executor.spin_once(timeout_sec=0.1)
            if time.monotonic() > deadline:
                counts = {topic: len(messages) for topic, messages in self.received.items()}
                pytest.fail(f"waited {WAIT_SECONDS:g} s in vain; received {counts}")
        return value

    def drain(self):
        """Take what has arrived, until nothing more comes."""
        count = -1
        while count != (count := sum(map(len, self.received.values()))):
            for _ in range(20):
                self.executor.spin_once(timeout_sec=0.02)

    def complete_frames(self, count):
        """Wait for so many images that have ground truth and camera_info of the same stamp."""

        def complete():
            images, infos, truths = (self.by_stamp(topic) for topic, _ in TOPICS[:3])
            stamps = sorted(images.keys() & infos.keys() & truths.keys())
            rows = [(images[stamp], infos[stamp], truths[stamp]) for stamp in stamps]
            return rows if len(rows) >= count else None

        return self.spin_until(complete)


@pytest.fixture
def subscriber(ros_domain_id):
    rclpy.init()
    made = Subscriber()
    yield made
    made.node.destroy_node()
    rclpy.try_shutdown()


@pytest.fixture
def simulate_process(start):
    """Start drone-kd simulate; it is killed at the end of the test."""
    return lambda *options: start("drone_kd.cli", "simulate", *options)


@pytest.mark.slow
def test_truth_and_camera_info_have_the_stamps_of_the_images(subscriber, simulate_process):
    simulate_process(*SMALL, "--scene", "car-park", "--seed", "3", "--rate", "10")
    flight = itertools.islice(
        fly(FlightPlan(width=320, height=240, scene="car-park", seed=3)), 600
    )
    for image, info, truth in subscriber.complete_frames(5):
        assert info.k[0] == info.k[4] == 320 and info.k[2] == 160 and info.k[5] == 120
        frame = next(frame for frame in flight if frame.image.tobytes() == bytes(image.data))
        rows = boxes_of(truth, "id")
        np.testing.assert_allclose([row[2:] for row in rows], frame.xyxy, atol=0.01)
        assert [row[1] for row in rows] == [str(i) for i in frame.ids]


@pytest.mark.slow
def test_simulated_time_starts_at_zero_and_stamps_follow_it(subscriber, simulate_process):
    process = simulate_process(*SMALL, "--sim-time", "--rate", "20", "--scene", "forest-edge")
    (_, _, truth), *_ = subscriber.complete_frames(3)

    def ticks():
        messages = subscriber.messages("/clock")
        return [message.clock.sec + message.clock.nanosec / 1e9 for message in messages]

    stamp = stamp_ns(truth.header) / 1e9
    subscriber.spin_until(lambda: len(ticks()) > 20 and ticks()[-1] > stamp)
    assert ticks() == sorted(set(ticks()))
    assert 0 < ticks()[0] < 3600 and 0 < stamp < 3600
    code, output = process.stop()
    assert code == 0, output


@pytest.mark.slow
def test_dropped_frames_outage_clock_jump_and_delay(subscriber, start):
    """Faults follow the seed and the camera's own stamps, however busy the machine is."""
    faults = {"drop": 0.3, "outage": [1.0, 1.0], "clock_jump": [3.0, -4.0], "delay_ms": 80.0}
    flight = {"scene": "forest-edge", "rate": 20.0, "seconds": 4.5, "width": 320, "height": 240}
    process = start(
        "drone_kd.simulation.camera_node",
        *ros_arguments({**flight, **faults, "seed": 0, "listeners": 1}),
    )
    subscriber.spin_until(lambda: process.ended)
    code, output = process.wait()
    assert code == 0, output
    ((published, lost),) = re.findall(r"Published (\d+) frames; (\d+) dropped", output)
    subscriber.drain()
    stamps, arrivals, kept = frames_due(subscriber)
    # A busy machine discovers topics late: the seed's draws tell which frame is the first.
    draws = np.random.default_rng(0).random(int(published) + int(lost) + 10) < 0.3
    windows = np.lib.stride_tricks.sliding_window_view(draws, len(kept))
    matching = [window for window in windows if follows(kept, window)]
    assert len(kept) > 40 and len(matching) == 1, (kept, draws)

    (jump,) = np.flatnonzero(np.diff(stamps) < 0)
    late = arrivals - stamps
    assert late[jump + 1 :].min() - late[: jump + 1].min() == pytest.approx(4, abs=0.5)
    (outage,) = np.nonzero(~kept & ~matching[0])
    first, last = outage[[0, -1]]
    assert stamps[last] - stamps[first] < 1.2
    before, after = np.flatnonzero(kept[:first])[-1], last + 1 + kept[last + 1 :].argmax()
    assert stamps[after] - stamps[before] > 0.8
    assert stamps[jump + 1] + 4 - stamps[first] == pytest.approx(2, abs=0.5)
    for info, at in subscriber.received["camera_info"]:
        assert at - stamp_ns(info.header) / 1e9 >= 0.08


def frames_due(subscriber):
    """Return stamps, arrivals and delivery of due frames between the first and last delivered."""
    due = subscriber.received["camera/ground_truth"]
    delivered = subscriber.by_stamp("camera_info").keys()
    assert subscriber.by_stamp("image").keys() <= delivered
    kept = np.array([stamp_ns(message.header) in delivered for message, _ in due])
    first, last = np.flatnonzero(kept)[[0, -1]]
    stamps = np.array([stamp_ns(message.header) / 1e9 for message, _ in due])
    arrivals = np.array([at for _, at in due])
    return (column[first : last + 1] for column in (stamps, arrivals, kept))


def follows(kept, drawn):
    """Whether exactly the drawn frames, and those of one outage, are not kept."""
    outage = np.flatnonzero(~kept & ~drawn)
    if (kept & drawn).any() or not len(outage):
        return False
    return not kept[outage[0] : outage[-1] + 1].any()


@pytest.mark.slow
def test_recorded_images_with_labels(subscriber, simulate_process, tmp_path):
    for number in range(3):
        image = np.full((48, 64, 3), 50 * number, np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), image)
    rows = [{"frame": 0, "boxes": [["car", 1, 2, 3, 4]]}, {"frame": 2, "boxes": []}]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels = str(tmp_path / "labels.jsonl")
    simulate_process("--images", str(tmp_path), "--labels", labels, "--loop")
    # Three images in turn: seven frames in a row would show each of them, gaps need a few more.
    seen: dict[int, list] = {}
    for image, _, truth in subscriber.complete_frames(12):
        seen.setdefault(image.data[0], []).append(boxes_of(truth, "id"))
    assert seen.keys() == {0, 50, 100}
    assert all(boxes == [["car", "", 1, 2, 3, 4]] for boxes in seen[0])
    assert all(boxes == [] for boxes in seen[50] + seen[100])


def test_it_stays_on_this_machine_unless_told_otherwise(monkeypatch):
    for name, value in (
        ("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET"),
        ("ROS_STATIC_PEERS", "drone"),
    ):
        monkeypatch.setenv(name, value)
    seen: dict[str, str] = {}
    monkeypatch.setattr(
        "drone_kd.simulation.camera_node.main", lambda command: seen.update(os.environ) or 0
    )
    assert cli.main(["simulate", "--network"]) == 0
    assert (seen["ROS_AUTOMATIC_DISCOVERY_RANGE"], seen["ROS_STATIC_PEERS"]) == ("SUBNET", "drone")
    seen.clear()
    assert cli.main(["simulate"]) == 0
    assert seen["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST" and "ROS_STATIC_PEERS" not in seen


def test_options_become_parameters_of_the_node():
    parser = argparse.ArgumentParser()
    simulate.add_options(parser)
    command = simulate.node_arguments(parser.parse_args([]))
    assert "rate:=15.0" in command and "outage:=[0.0, 0.0]" in command
    options = ["--drop", "0.3", "--outage", "3.5", "1.5", "--clock-jump", "6.5", "-4"]
    command = simulate.node_arguments(parser.parse_args([*options, "--delay", "80"]))
    wanted = {"drop:=0.3", "outage:=[3.5, 1.5]", "clock_jump:=[6.5, -4.0]", "delay_ms:=80.0"}
    assert wanted <= set(command)


@pytest.mark.slow
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
def test_wrong_options_are_one_line_and_2(options, says, ros_domain_id, simulate_process):
    code, output = simulate_process(*options).wait()
    assert code == 2
    assert output.count("\n") == 1 and "error: " in output and says in output
