"""Detector in a Gazebo world, with ground truth and a flight record for scoring.

ros2 launch drone_kd sim.launch.py headless:=true camera:=down output:=runs/sim
drone-kd score runs/sim

Gazebo Fortress with Humble, Harmonic with Jazzy and Kilted.
"""

import os
import shlex
from pathlib import Path
from typing import Any

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

SHARE = Path(get_package_share_directory("drone_kd"))
FLY = SHARE / "launch" / "fly.launch.py"
SIMULATED = {"use_sim_time": True}


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments, and start Gazebo, bridge, detector, ground truth and scorer."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "world",
                default_value=str(SHARE / "worlds" / "aerial_traffic.sdf"),
                description="SDF file; another world needs its own shapes and bridge.",
            ),
            DeclareLaunchArgument(
                "headless", default_value="false", description="Run Gazebo without a window."
            ),
            DeclareLaunchArgument(
                "camera",
                default_value="front",
                choices=["front", "down"],
                description="Camera of the drone that the detector uses.",
            ),
            DeclareLaunchArgument(
                "output", default_value="sim-flight", description="Folder for the flight record."
            ),
            DeclareLaunchArgument(
                "shapes",
                default_value=str(SHARE / "worlds" / "aerial_traffic.yaml"),
                description="Shapes and classes of the objects in the world, for ground truth.",
            ),
            DeclareLaunchArgument(
                "bridge",
                default_value=str(SHARE / "worlds" / "bridge.yaml"),
                description="Topics of ros_gz_bridge.",
            ),
            DeclareLaunchArgument(
                "boxes",
                default_value="",
                description="Bridged topic of a bounding-box camera; replaces projected shapes as "
                "ground truth.",
            ),
            DeclareLaunchArgument(
                "label_names",
                default_value="['']",
                description="Names of that camera's labels 0, 1, ...: ['', car, person].",
            ),
            OpaqueFunction(function=_simulation),
        ]
    )


def _simulation(context: LaunchContext) -> list[Any]:
    gazebo = _share("ros_gz_sim") / "launch" / "gz_sim.launch.py"
    _share("ros_gz_bridge")
    for name in ("world", "shapes", "bridge"):
        path = LaunchConfiguration(name).perform(context)
        if not Path(path).is_file():
            raise RuntimeError(f"{name}: expected a file, found none at {path}")
    world = LaunchConfiguration("world").perform(context)
    headless = LaunchConfiguration("headless").perform(context).lower() == "true"
    camera = LaunchConfiguration("camera").perform(context)
    topic = f"/drone/{camera}"
    boxes = LaunchConfiguration("boxes").perform(context)
    truth = _own_node(
        "gazebo_truth",
        {
            "shapes": ParameterValue(LaunchConfiguration("shapes"), value_type=str),
            "camera": camera,
        },
        [("camera_info", f"{topic}/camera_info"), ("poses", "/poses")],
    )
    scorer = _own_node(
        "scorer",
        {
            "output": ParameterValue(LaunchConfiguration("output"), value_type=str),
            "label_names": ParameterValue(
                LaunchConfiguration("label_names"), value_type=list[str]
            ),
        },
        [
            ("detections", "detector/detections"),
            ("label_info", "detector/label_info"),
            ("ground_truth", boxes or "gazebo_truth/ground_truth"),
            ("camera_info", f"{topic}/camera_info"),
            ("image", f"{topic}/image"),
        ],
    )
    return [
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(gazebo)),
            launch_arguments={
                "gz_args": ("-r -s --headless-rendering " if headless else "-r ")
                + shlex.quote(world),
                # The other nodes would wait forever without Gazebo.
                "on_exit_shutdown": "true",
            }.items(),
        ),
        Node(
            package="ros_gz_bridge",
            executable="parameter_bridge",
            name="bridge",
            parameters=[{"config_file": LaunchConfiguration("bridge"), **SIMULATED}],
            output="screen",
        ),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(FLY)),
            launch_arguments={"image": f"{topic}/image", "use_sim_time": "true"}.items(),
        ),
        *([] if boxes else [truth]),
        scorer,
    ]


def _own_node(
    executable: str, parameters: dict[str, Any], remappings: list[tuple[str, str]]
) -> Node:
    return Node(
        package="drone_kd",
        executable=executable,
        name=executable,
        namespace=LaunchConfiguration("namespace", default=""),
        parameters=[{**parameters, **SIMULATED}],
        remappings=remappings,
        output="screen",
    )


def _share(package: str) -> Path:
    try:
        return Path(get_package_share_directory(package))
    except PackageNotFoundError:
        distro = os.environ.get("ROS_DISTRO", "DISTRO")
        raise RuntimeError(
            f"expected the package {package}, found none: apt install ros-{distro}-ros-gz"
        ) from None
