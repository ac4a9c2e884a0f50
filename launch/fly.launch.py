"""Detector on a camera topic.

ros2 launch drone_kd fly.launch.py model:=model.onnx image:=/camera/image_raw
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from drone_kd.dds import large_image_settings

DEFAULTS = Path(get_package_share_directory("drone_kd")) / "config" / "detector.yaml"
ARGUMENTS = (
    ("model", "", "Path of a model.onnx; empty: as in params_file, or the default."),
    ("image", "image", "Image topic of the camera."),
    ("namespace", "", "Namespace of the node."),
    ("params_file", str(DEFAULTS), "ROS parameter file of the detector."),
    ("use_sim_time", "false", "Take the time from /clock."),
    ("respawn", "false", "Start the detector again when it ends, e.g. after a CUDA error."),
)


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments, and start the detector, which activates itself."""
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=description)
                for name, default, description in ARGUMENTS
            ),
            # Large best-effort images are lost in Fast DDS's default shared memory.
            *(SetEnvironmentVariable(*item) for item in large_image_settings().items()),
            OpaqueFunction(function=_detector),
        ]
    )


def _detector(context: LaunchContext) -> list[Node]:
    use_sim_time = ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)
    parameters = {"autostart": True, "use_sim_time": use_sim_time}
    if LaunchConfiguration("model").perform(context):
        parameters["model"] = ParameterValue(LaunchConfiguration("model"), value_type=str)
    return [
        Node(
            package="drone_kd",
            executable="detector",
            name="detector",
            namespace=LaunchConfiguration("namespace"),
            parameters=[LaunchConfiguration("params_file"), parameters],
            remappings=[("image", LaunchConfiguration("image"))],
            output="screen",
            respawn=LaunchConfiguration("respawn").perform(context) == "true",
            respawn_delay=1.0,
        )
    ]
