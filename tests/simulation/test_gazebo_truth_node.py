import math
import os
import queue
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not here")
pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not here")

from geometry_msgs.msg import TransformStamped
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray

from drone_kd.paths import share_path
from drone_kd.simulation.gazebo_world import read_gazebo_world, visible_truth
from drone_kd.simulation.truth_messages import boxes_of, stamp_ns, to_camera_info

MS = 10**6


@pytest.fixture
def site(ground):
    """The node as a process, with the bridge's topics played to it."""
    made = ground()
    made.poses = made.node.create_publisher(TransformStamped, "poses", QoSProfile(depth=100))
    made.infos = made.node.create_publisher(CameraInfo, "camera_info", QoSProfile(depth=10))
    made.truths = queue.Queue()
    made.node.create_subscription(
        Detection2DArray, "gazebo_truth/ground_truth", made.truths.put, QoSProfile(depth=10)
    )
    made.process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "drone_kd.simulation.gazebo_truth_node",
            "--ros-args",
            "-p",
            "camera:=down",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=dict(os.environ),
    )
    made.wait_until(
        lambda: (
            made.poses.get_subscription_count()
            and made.infos.get_subscription_count()
            and made.node.count_publishers("/gazebo_truth/ground_truth")
        ),
        "it listens",
    )
    yield made
    made.process.kill()
    made.process.wait()


def header(stamp_ms):
    made = Header()
    made.stamp.sec, made.stamp.nanosec = divmod(stamp_ms * MS, 10**9)
    return made


def send_pose(site, name, stamp_ms, x, y, z, yaw):
    message = TransformStamped(header=header(stamp_ms), child_frame_id=name)
    place = message.transform.translation
    place.x, place.y, place.z = map(float, (x, y, z))
    message.transform.rotation.z, message.transform.rotation.w = (
        math.sin(yaw / 2),
        math.cos(yaw / 2),
    )
    site.poses.publish(message)


def test_truth_has_the_stamp_of_the_frame_and_the_place_of_its_moment(site):
    world = read_gazebo_world(share_path("worlds/aerial_traffic.yaml"))
    (car, *_) = world.moving
    for stamp in range(0, 200, 20):
        # 10 m/s: at 90 ms, between two poses, it is at 0.9 m.
        send_pose(site, car, stamp, stamp / 100, 0, 0, 0)
        scope = ("", "aerial_traffic::", "aerial_traffic/")[stamp // 20 % 3]
        send_pose(site, f"{scope}drone", stamp, 0, 0, 50, math.pi / 2)
        if stamp == 100:
            site.infos.publish(to_camera_info((720, 1280), 1280.0, header(90)))
    truth = site.truths.get(timeout=15)
    assert stamp_ns(truth.header) == 90 * MS
    rows = {row[1]: row for row in boxes_of(truth, "id")}
    poses = {
        "drone": np.array([0, 0, 50, 0, 0, math.sin(math.pi / 4), math.cos(math.pi / 4)]),
        car: np.array([0.9, 0, 0, 0, 0, 0, 1]),
    }
    k = np.array([[1280.0, 0, 640], [0, 1280.0, 360], [0, 0, 1]])
    wanted = visible_truth(world, "down", poses, k, 1280, 720)
    assert set(rows) == set(wanted.ids)
    for box, track, name in zip(wanted.xyxy, wanted.ids, wanted.names, strict=True):
        assert rows[track][0] == name
        np.testing.assert_allclose(rows[track][2:], box, atol=0.02)


def test_a_camera_without_focal_length_is_named(site):
    site.infos.publish(to_camera_info((720, 1280), None, header(90)))
    for line in site.process.stdout:
        if "camera_info has no focal length" in line:
            break
    assert site.truths.empty()


def test_without_poses_it_says_so(site):
    site.infos.publish(to_camera_info((720, 1280), 1280.0, header(90)))
    for line in site.process.stdout:
        if "no pose of drone yet" in line:
            break
    assert site.truths.empty()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["-p", "camera:=side"], "camera: expected down or front, got 'side'"),
        (["-p", "shapes:=/no.yaml"], "/no.yaml: No such file"),
    ],
)
def test_a_bad_parameter_is_one_line_and_2(ros_domain_id, args, says):
    done = subprocess.run(
        [sys.executable, "-m", "drone_kd.simulation.gazebo_truth_node", "--ros-args", *args],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("gazebo_truth: error: ") and says in done.stderr
