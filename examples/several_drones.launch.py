"""Detectors of two drones: ros2 launch examples/several_drones.launch.py.

Each group keeps its arguments to itself; without it the second detector would inherit them.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

FLY = Path(get_package_share_directory("drone_kd")) / "launch" / "fly.launch.py"
DRONES = {
    "drone1": {"image": "camera/image_raw"},  # /drone1/camera/image_raw
    "drone2": {
        "image": "/camera2/image_raw",
        "node_name": "eye",
    },  # detections: /drone2/eye/detections
}


def generate_launch_description() -> LaunchDescription:
    """Start one detector per drone, in a namespace of its own."""
    return LaunchDescription(
        [
            GroupAction(
                [
                    IncludeLaunchDescription(
                        PythonLaunchDescriptionSource(str(FLY)),
                        launch_arguments={"namespace": drone, **arguments}.items(),
                    )
                ]
            )
            for drone, arguments in DRONES.items()
        ]
    )
