"""drone-kd simulate: a camera in flight, without a drone and without Gazebo.

The command is the node `camera` with its parameters as options, kept on this machine.
"""

from __future__ import annotations

import argparse
import json
from itertools import chain

from drone_kd.dds import carry_large_images, stay_on_this_machine
from drone_kd.media.image_files import SourceError
from drone_kd.paths import parameter_defaults
from drone_kd.simulation.scene import DISTURBANCES, FLIGHTS, SCENES, WEATHERS

# Group; option, parameter of the node, metavar, help. A parameter that is a pair takes two values.
_PARAMETERS = {
    "generated flight": (
        (
            "--flight",
            "flight",
            "NAME",
            f"one of {', '.join(FLIGHTS)}; add {', '.join(f'+{name}' for name in DISTURBANCES)}",
        ),
        ("--seed", "seed", "N", "of place, traffic and weather"),
        ("--altitude", "altitude", "M", "above the ground, 15 to 150; 0: the flight's own"),
        ("--speed", "speed", "M/S", "over the ground"),
        ("--blur", "blur", "PX", "motion blur; -1: as the weather of the seed"),
        ("--haze", "haze", "SHARE", "0 to 0.95; -1: as the weather of the seed"),
        ("--rolling", "rolling_ms", "MS", "rolling shutter, from the first row to the last"),
    ),
    "camera": (
        ("--rate", "rate", "HZ", "frames per second"),
        ("--seconds", "seconds", "S", "length of the flight (simulate: 0: until Ctrl-C)"),
        ("--drop", "drop", "SHARE", "share of frames that the camera loses"),
        ("--delay", "delay_ms", "MS", "from the exposure to the frame on its topic"),
        ("--outage", "outage", "S", "the camera stops: start and length"),
        ("--clock-jump", "clock_jump", "S", "the clock jumps: at this second, by so many"),
    ),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_flight_options(parser)
    ros = parser.add_argument_group("ROS 2")
    ros.add_argument("--sim-time", action="store_true", help="stamps start at 0; /clock has them")
    ros.add_argument(
        "--network", action="store_true", help="reach other machines (default: this machine alone)"
    )


def add_flight_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe a flight; see `node_arguments`."""
    defaults = parameter_defaults("camera.yaml")
    source = parser.add_argument_group("source: a generated flight, or a recorded one")
    what = source.add_mutually_exclusive_group()
    scenes = f"one of {', '.join(SCENES)} (default: a random place)"
    what.add_argument("--scene", choices=SCENES, default="", metavar="SCENE", help=scenes)
    what.add_argument("--images", metavar="DIR", help="play a folder of images")
    what.add_argument("--video", metavar="FILE", help="play a video")
    what.add_argument("--bag", metavar="BAG", help="play a rosbag2 with one image topic")
    truth = "ground truth of --images or --video, as JSON lines"
    source.add_argument("--labels", metavar="FILE", help=truth)
    source.add_argument("--loop", action="store_true", help="repeat the source without end")
    for title, parameters in _PARAMETERS.items():
        group = parser.add_argument_group(title)
        if title == "generated flight":
            air = f"one of {', '.join(WEATHERS)} (default: the scene's own)"
            group.add_argument("--weather", choices=WEATHERS, default="", metavar="NAME", help=air)
            size = f"size of the frames (default: {defaults['width']}x{defaults['height']})"
            group.add_argument("--size", type=_size, metavar="WxH", help=size)
        for option, name, metavar, text in parameters:
            default = defaults[name]
            pair = isinstance(default, list)
            group.add_argument(
                option,
                dest=name,
                type=float if pair else type(default),
                nargs=2 if pair else None,
                default=default,
                metavar=metavar,
                help=text,
            )


def node_arguments(arguments: argparse.Namespace) -> list[str]:
    """What the options mean for the node `camera`: --ros-args and parameters.

    Raises:
        SourceError: options that do not go together.
    """
    source = arguments.images or arguments.video or arguments.bag or ""
    if arguments.labels and not (arguments.images or arguments.video):
        raise SourceError("--labels belong to --images or --video: a generated flight has its own")
    values = {
        "scene": arguments.scene,
        "weather": arguments.weather,
        "source": source,
        "labels": arguments.labels or "",
        "loop": arguments.loop,
    }
    for _, name, *_ in chain(*_PARAMETERS.values()):
        values[name] = getattr(arguments, name)
    if arguments.size:
        values["width"], values["height"] = arguments.size
    return ros_arguments(values)


def ros_arguments(values: dict) -> list[str]:
    """Parameters for the command line of a node."""
    command = ["--ros-args"]
    for name, value in values.items():
        # A string of JSON is one of YAML, whatever is in it.
        text = json.dumps(value) if isinstance(value, str) else str(value).lower()
        command += ["-p", f"{name}:={text}"]
    return command


def need_ros(command: str) -> None:
    """Make sure that there is a ROS 2.

    Raises:
        SourceError: there is none; says how to get one.
    """
    try:
        import rclpy  # noqa: F401
        import vision_msgs.msg  # noqa: F401
    except ImportError as error:
        raise SourceError(
            f"{command} needs ROS 2 ({error}): source an installation with vision_msgs "
            "(/opt/ros/DISTRO/setup.bash), or run `make setup` and use .venv/bin/drone-kd"
        ) from None


def run(arguments: argparse.Namespace) -> int:
    """Publish the flight until it ends."""
    command = node_arguments(arguments)
    command += ["-p", f"sim_time:={str(arguments.sim_time).lower()}"]
    if not arguments.network:
        stay_on_this_machine()
    carry_large_images()
    need_ros("simulate")
    from drone_kd.simulation.camera_node import main

    return main(command)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT in pixels, got {text!r}")
    return int(width), int(height)
