"""Detector on a camera topic.

ros2 launch drone_kd fly.launch.py model:=model.onnx image:=/camera/image_raw
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from drone_kd.dds import large_image_settings
from drone_kd.paths import expanded

SHARE = Path(get_package_share_directory("drone_kd"))
# A file: launch_ros passes values under the node's name, which win over "/**" of a user's file.
DEFAULTS = SHARE / "config" / "fly.yaml"
ARGUMENTS = (
    ("model", "", "Path of a model.onnx; empty: as in params_file, or the default."),
    ("camera", "", "Device, URL, pipeline or file, read by the detector; empty: the image topic."),
    ("image", "image", "Image topic of the camera, if it is the only one."),
    ("image_transport", "", "raw, compressed or ffmpeg; empty: as in params_file, or raw."),
    ("namespace", "", "Namespace of the node, e.g. of one of several drones."),
    ("node_name", "detector", "Name of the node."),
    ("params_file", "", "ROS parameter file of the detector; arguments win over it."),
    ("autostart", "", "Configure and activate; empty: as in params_file, or true."),
    ("use_sim_time", "", "Take the time from /clock; empty: as in params_file, or false."),
    ("log_level", "info", "debug, info, warn, error or fatal."),
    ("use_respawn", "false", "Start the detector again when it ends, e.g. after a CUDA error."),
)
# Those that are parameters of the node.
TYPES = {
    "model": str,
    "camera": str,
    "image_transport": str,
    "autostart": bool,
    "use_sim_time": bool,
}
LOG_LEVELS = ("debug", "info", "warn", "error", "fatal")


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments, and start the detector, which activates itself."""
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=description)
                for name, default, description in ARGUMENTS
            ),
            OpaqueFunction(function=_detector),
        ]
    )


def _detector(context: LaunchContext) -> list[Node]:
    given = {
        name: ParameterValue(LaunchConfiguration(name), value_type=value_type)
        for name, value_type in TYPES.items()
        if LaunchConfiguration(name).perform(context)
    }
    file = LaunchConfiguration("params_file").perform(context)
    if file:
        file = str(expanded(file))
        if not Path(file).is_file():
            raise RuntimeError(f"params_file: expected a file, found none at {file}")
    respawn = LaunchConfiguration("use_respawn").perform(context).lower()
    if respawn not in ("true", "false"):
        raise RuntimeError(f"use_respawn: expected true or false, got {respawn}")
    log_level = LaunchConfiguration("log_level").perform(context).lower()
    if log_level not in LOG_LEVELS:
        raise RuntimeError(f"log_level: expected {' or '.join(LOG_LEVELS)}, got {log_level}")
    # The later one wins.
    parameters = [str(DEFAULTS), *([file] if file else []), *([given] if given else [])]
    return [
        Node(
            package="drone_kd",
            executable="detector",
            name=LaunchConfiguration("node_name"),
            namespace=LaunchConfiguration("namespace"),
            parameters=parameters,
            remappings=[("image", LaunchConfiguration("image"))],
            arguments=["--ros-args", "--log-level", log_level],
            # Large best-effort images are lost in Fast DDS's default shared memory.
            additional_env=large_image_settings(),
            output="screen",
            respawn=respawn == "true",
            respawn_delay=1.0,
        )
    ]
