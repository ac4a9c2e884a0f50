"""Detector on a camera that replays an image folder, a video or a procedural flight.

ros2 launch drone_kd replay.launch.py source:=flight.mp4 rate:=30.0 model:=model.onnx
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from drone_kd.dds import large_image_settings

SHARE = Path(get_package_share_directory("drone_kd"))
FLY = SHARE / "launch" / "fly.launch.py"
DEFAULTS = SHARE / "config" / "camera.yaml"


def generate_launch_description() -> LaunchDescription:
    """Start a camera, and the detector by including fly.launch.py."""
    source = "Image folder or video; empty: a procedural flight."
    return LaunchDescription(
        [
            DeclareLaunchArgument("source", default_value="", description=source),
            DeclareLaunchArgument("rate", default_value="15.0", description="Frames per second."),
            # Declares the other arguments.
            IncludeLaunchDescription(PythonLaunchDescriptionSource(str(FLY))),
            OpaqueFunction(function=_camera),
        ]
    )


def _camera(context: LaunchContext) -> list[Node]:
    image = LaunchConfiguration("image").perform(context)
    folder, slash, _ = image.rpartition("/")
    return [
        Node(
            package="drone_kd",
            executable="camera",
            name="camera",
            namespace=LaunchConfiguration("namespace"),
            parameters=[
                str(DEFAULTS),
                {
                    "source": ParameterValue(LaunchConfiguration("source"), value_type=str),
                    "rate": ParameterValue(LaunchConfiguration("rate"), value_type=float),
                },
            ],
            # As image_transport does it: beside the image.
            remappings=[("image", image), ("camera_info", f"{folder}{slash}camera_info")],
            additional_env=large_image_settings(),
            output="screen",
        )
    ]
