import math
import queue

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
from node_process import WAIT_SECONDS

MS = 10**6


@pytest.fixture
def site(ground, start):
    """The node as a process, with publishers in the place of Gazebo's bridge."""
    made = ground()
    made.poses = made.node.create_publisher(TransformStamped, "poses", QoSProfile(depth=100))
    made.infos = made.node.create_publisher(CameraInfo, "camera_info", QoSProfile(depth=10))
    made.truths = queue.Queue()
    made.node.create_subscription(
        Detection2DArray, "gazebo_truth/ground_truth", made.truths.put, QoSProfile(depth=10)
    )
    made.process = start(
        "drone_kd.simulation.gazebo_truth_node", "--ros-args", "-p", "camera:=down"
    )
    made.wait_until(
        lambda: (
            made.poses.get_subscription_count()
            and made.infos.get_subscription_count()
            and made.node.count_publishers("/gazebo_truth/ground_truth")
        ),
        "it listens",
    )
    return made


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


@pytest.mark.slow
def test_truth_has_the_stamp_of_the_frame_and_the_place_of_its_moment(site):
    world = read_gazebo_world(share_path("worlds/aerial_traffic.yaml"))
    (car, leaving, *_) = world.moving
    for stamp in range(0, 200, 20):
        # 10 m/s: at 90 ms, between two poses, it is at 0.9 m.
        send_pose(site, car, stamp, stamp / 100, 0, 0, 0)
        # Most of it is beyond the border of the frame.
        send_pose(site, leaving, stamp, -26, 0, 0, 0)
        scope = ("", "aerial_traffic::", "aerial_traffic/")[stamp // 20 % 3]
        send_pose(site, f"{scope}drone", stamp, 0, 0, 50, math.pi / 2)
        if stamp == 100:
            site.infos.publish(to_camera_info((720, 1280), 1280.0, header(90)))
    truth = site.truths.get(timeout=WAIT_SECONDS)
    assert stamp_ns(truth.header) == 90 * MS
    rows = {row[1]: row for row in boxes_of(truth, "id")}
    poses = {
        "drone": np.array([0, 0, 50, 0, 0, math.sin(math.pi / 4), math.cos(math.pi / 4)]),
        car: np.array([0.9, 0, 0, 0, 0, 0, 1]),
        leaving: np.array([-26.0, 0, 0, 0, 0, 0, 1]),
    }
    k = np.array([[1280.0, 0, 640], [0, 1280.0, 360], [0, 0, 1]])
    wanted = visible_truth(world, "down", poses, k, 1280, 720)
    assert set(rows) == set(wanted.ids)
    assert 0 < wanted.ignored.sum() < len(wanted.ids)
    columns = wanted.xyxy, wanted.ids, wanted.names, wanted.ignored
    for box, track, name, ignored in zip(*columns, strict=True):
        assert rows[track][0] == name and (len(rows[track]) == 7) == ignored
        np.testing.assert_allclose(rows[track][2:6], box, atol=0.02)


@pytest.mark.slow
def test_camera_info_without_focal_length_is_an_error(site):
    site.infos.publish(to_camera_info((720, 1280), None, header(90)))
    site.process.wait_for_line("No ground truth: expected focal lengths")
    assert site.truths.empty()


@pytest.mark.slow
def test_hostile_poses_and_camera_infos_are_dropped(site):
    bad = to_camera_info((720, 1280), 1280.0, header(90))
    bad.width = bad.height = 2**31
    site.infos.publish(bad)
    site.process.wait_for_line("less than 64 megapixels, got 2147483648x2147483648")
    for stamp in (0, 100):
        send_pose(site, "drone", stamp, 0, 0, 50, 0)
    send_pose(site, "drone", 150, float("nan"), 0, 1e300, 0)
    site.process.wait_for_line("Pose of drone dropped")
    for number in range(50):
        send_pose(site, f"stranger{number}", 160, 0, 0, 50, 0)
    site.infos.publish(to_camera_info((720, 1280), 1280.0, header(90)))
    send_pose(site, "drone", 200, 0, 0, 50, 0)
    assert stamp_ns(site.truths.get(timeout=WAIT_SECONDS).header) == 90 * MS


@pytest.mark.slow
def test_missing_poses_are_a_warning(site):
    site.infos.publish(to_camera_info((720, 1280), 1280.0, header(90)))
    site.process.wait_for_line("No pose of drone received yet")
    assert site.truths.empty()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["-p", "camera:=side"], "camera: expected down or front, got 'side'"),
        (["-p", "shapes:=/no.yaml"], "/no.yaml: No such file"),
    ],
)
def test_a_bad_parameter_is_one_line_and_2(ros_domain_id, start, args, says):
    code, output = start("drone_kd.simulation.gazebo_truth_node", "--ros-args", *args).wait()
    assert code == 2 and output.count("\n") == 1
    assert output.startswith("gazebo_truth: error: ") and says in output
