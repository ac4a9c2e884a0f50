"""Stand-in for `ros2 launch`: python ros2_launch.py FILE NAME:=VALUE ...

With the real `launch_ros`, or with simulated_launch.py where there is none.
`python ros2_launch.py --arguments FILE` prints the names of the file's launch arguments.
"""

from __future__ import annotations

import importlib.util
import sys

if importlib.util.find_spec("launch_ros") is None:
    import simulated_launch

    simulated_launch.install()

from launch import LaunchService
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource


def main(file: str, *arguments: str) -> int:
    """Launch a file, or print its arguments; return the exit code."""
    if file == "--arguments":
        specification = importlib.util.spec_from_file_location("launch_file", arguments[0])
        assert specification is not None and specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        for entity in module.generate_launch_description().entities:
            if isinstance(entity, DeclareLaunchArgument):
                print(entity.name)
        return 0
    service = LaunchService()
    service.include_launch_description(
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(file),
            launch_arguments=[tuple(argument.split(":=", 1)) for argument in arguments],
        )
    )
    return service.run()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
