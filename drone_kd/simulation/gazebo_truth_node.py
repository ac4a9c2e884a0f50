r"""ROS 2 node `gazebo_truth`: ground truth of a Gazebo world from shapes, poses and camera_info.

    ros2 run drone_kd gazebo_truth --ros-args -p camera:=front \
        -r camera_info:=/drone/front/camera_info -r poses:=/poses

`~/ground_truth` has the visible objects, with the stamp of each camera_info.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import defaultdict, deque
from operator import itemgetter

import numpy as np
from geometry_msgs.msg import TransformStamped
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo
from vision_msgs.msg import Detection2DArray

from drone_kd.media.compressed_images import MAX_PIXELS
from drone_kd.media.image_files import SourceError
from drone_kd.paths import share_path
from drone_kd.ros.run import run_node
from drone_kd.ros.survival import Surviving
from drone_kd.simulation.declare import declare_gazebo_truth_parameters
from drone_kd.simulation.gazebo_world import read_gazebo_world, visible_truth
from drone_kd.simulation.truth_messages import stamp_ns, truth_to_message

_QOS = QoSProfile(depth=100)
_POSES_QOS = QoSProfile(depth=1000)
# Poses are kept for this long: images arrive later than the poses of their moment.
_KEPT_NS = 2 * 10**9
_KEPT = 2000
# Of a pose: a number in metres, and the length of its quaternion.
_LARGEST, _SHORTEST = 1e7, 1e-3
_THROTTLE_S = 5.0


class GazeboTruthNode(Surviving, Node):  # type: ignore[misc]  # the mixin's signatures
    """Publishes ground truth; see the module's docstring.

    Raises:
        SourceError: the shapes are unreadable, or the camera is unknown.
    """

    def __init__(self) -> None:
        super().__init__("gazebo_truth")
        declare_gazebo_truth_parameters(self)
        path = self.get_parameter("shapes").value or share_path("worlds/aerial_traffic.yaml")
        self._world = read_gazebo_world(path)
        self._camera = self.get_parameter("camera").value
        if self._camera not in self._world.cameras:
            known = " or ".join(self._world.cameras)
            raise SourceError(f"camera: expected {known}, got {self._camera!r}")
        self._poses: dict[str, deque[tuple[int, np.ndarray]]] = defaultdict(
            lambda: deque(maxlen=_KEPT)
        )
        self._waiting: deque[CameraInfo] = deque(maxlen=100)
        self._publisher = self.create_publisher(Detection2DArray, "~/ground_truth", _QOS)
        self.create_subscription(TransformStamped, "poses", self._on_pose, _POSES_QOS)
        self.create_subscription(CameraInfo, "camera_info", self._on_info, _QOS)

    def stop(self) -> bool:
        """Do nothing: the node has no thread of its own."""
        return True

    def _on_pose(self, message: TransformStamped) -> None:
        # Bridges write "drone" alone, or with its scope in Gazebo's or in ROS notation.
        name = message.child_frame_id.replace("::", "/").rpartition("/")[2]
        if name != self._world.carrier and name not in self._world.moving:
            return
        at, place = message.transform.translation, message.transform.rotation
        pose = np.array([at.x, at.y, at.z, place.x, place.y, place.z, place.w])
        # Comparisons with NaN are false.
        if not ((np.abs(pose) < _LARGEST).all() and np.linalg.norm(pose[3:]) > _SHORTEST):
            self.get_logger().error(
                f"Pose of {name} dropped: expected finite numbers and a rotation",
                throttle_duration_sec=_THROTTLE_S,
            )
            return
        stamp, kept = stamp_ns(message.header), self._poses[name]
        if kept and stamp < kept[-1][0]:  # the simulation was restarted
            self._poses.clear()
            self._waiting.clear()
            kept = self._poses[name]
        kept.append((stamp, pose))
        while stamp - kept[0][0] > _KEPT_NS:
            kept.popleft()
        # Poses of one moment arrive in any order: wait for the carrier's next one.
        if name == self._world.carrier and len(kept) > 1:
            while self._waiting and stamp_ns(self._waiting[0].header) <= kept[-2][0]:
                self._publish(self._waiting.popleft())

    def _on_info(self, message: CameraInfo) -> None:
        size = message.width * message.height
        if not (np.isfinite(message.k).all() and size < MAX_PIXELS):
            self.get_logger().error(
                "No ground truth: expected a camera_info of finite numbers and less than "
                f"{MAX_PIXELS / 1e6:g} megapixels, got {message.width}x{message.height}",
                throttle_duration_sec=_THROTTLE_S,
            )
            return
        if not (message.k[0] > 0 and message.k[4] > 0):
            self.get_logger().error(
                "No ground truth: expected focal lengths in k of camera_info, got "
                f"{float(message.k[0]):g} and {float(message.k[4]):g}",
                throttle_duration_sec=_THROTTLE_S,
            )
            return
        if self._world.carrier not in self._poses:
            self.get_logger().warning(
                f"No pose of {self._world.carrier} received yet; check that `poses` is bridged",
                throttle_duration_sec=_THROTTLE_S,
            )
        self._waiting.append(message)

    def _publish(self, info: CameraInfo) -> None:
        at = stamp_ns(info.header)
        poses = {name: _pose_at(kept, at) for name, kept in self._poses.items()}
        k = np.array(info.k).reshape(3, 3)
        truth = visible_truth(self._world, self._camera, poses, k, info.width, info.height)
        self._publisher.publish(truth_to_message(truth, info.header))


def _pose_at(kept: deque[tuple[int, np.ndarray]], at: int) -> np.ndarray:
    """Return the pose at a time: interpolated, or the nearest known one."""
    number = bisect_right(kept, at, key=itemgetter(0))
    if number in (0, len(kept)):
        return kept[max(number - 1, 0)][1]
    (before, first), (after, last) = kept[number - 1], kept[number]
    share, last = (at - before) / (after - before), last.copy()
    if first[3:] @ last[3:] < 0:  # q and -q are the same rotation
        last[3:] *= -1
    pose = first + share * (last - first)
    pose[3:] /= np.linalg.norm(pose[3:])
    return pose


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; see `run_node`."""
    return run_node("gazebo_truth", lambda _finished: GazeboTruthNode(), args, survives=True)


if __name__ == "__main__":
    sys.exit(main())
