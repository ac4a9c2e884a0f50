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

from drone_kd.dds import large_image_settings

SHARE = Path(get_package_share_directory("drone_kd"))
FLY = SHARE / "launch" / "fly.launch.py"
SIMULATED = {"use_sim_time": True}
WORLD, SHAPES, BRIDGE = (
    str(SHARE / "worlds" / name)
    for name in ("aerial_traffic.sdf", "aerial_traffic.yaml", "bridge.yaml")
)
ARGUMENTS = (
    ("world", WORLD, "SDF file; another world needs its own shapes and bridge."),
    ("headless", "false", "Run Gazebo without a window."),
    ("output", "sim-flight", "Folder for the flight record."),
    ("shapes", SHAPES, "Shapes and classes of the objects in the world, for ground truth."),
    ("bridge", BRIDGE, "Topics of ros_gz_bridge."),
    ("boxes", "", "Bridged topic of a bounding-box camera; replaces shapes as ground truth."),
    ("label_names", "['']", "Names of that camera's labels 0, 1, ...: ['', car, person]."),
)


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments, and start Gazebo, bridge, detector, ground truth and scorer."""
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=description)
                for name, default, description in ARGUMENTS
            ),
            DeclareLaunchArgument(
                "camera",
                default_value="front",
                choices=["front", "down"],
                description="Camera of the drone that the detector uses.",
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
    shapes = ParameterValue(LaunchConfiguration("shapes"), value_type=str)
    truth = _own_node(
        "gazebo_truth",
        {"shapes": shapes, "camera": camera},
        [("camera_info", f"{topic}/camera_info"), ("poses", "/poses")],
    )
    output = ParameterValue(LaunchConfiguration("output"), value_type=str)
    label_names = ParameterValue(LaunchConfiguration("label_names"), value_type=list[str])
    scorer = _own_node(
        "scorer",
        {"output": output, "label_names": label_names},
        [
            ("detections", "detector/detections"),
            ("label_info", "detector/label_info"),
            ("ground_truth", boxes or "gazebo_truth/ground_truth"),
            ("camera_info", f"{topic}/camera_info"),
            ("image", f"{topic}/image"),
        ],
    )
    options = "-r -s --headless-rendering" if headless else "-r"
    # On exit: the other nodes would wait forever without Gazebo.
    gz_arguments = {"gz_args": f"{options} {shlex.quote(world)}", "on_exit_shutdown": "true"}
    return [
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(gazebo)), launch_arguments=gz_arguments.items()
        ),
        Node(
            package="ros_gz_bridge",
            executable="parameter_bridge",
            name="bridge",
            parameters=[{"config_file": LaunchConfiguration("bridge"), **SIMULATED}],
            additional_env=large_image_settings(),
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
        additional_env=large_image_settings(),
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
