"""drone-kd simulate: a camera in flight, without a drone and without Gazebo.

The command is the node `camera` with its parameters as options, kept on this machine.
"""

from __future__ import annotations

import argparse

from drone_kd.dds import carry_large_images, stay_on_this_machine
from drone_kd.media.image_files import SourceError
from drone_kd.paths import parameter_defaults
from drone_kd.simulation.scene import SCENES

# Option, parameter of the node, what it stands for, help.
_NUMBERS = (
    ("--seed", "seed", "N", "of place, traffic and weather"),
    ("--altitude", "altitude", "M", "above the ground, 15 to 150; 0: wanders from 44 to 72"),
    ("--speed", "speed", "M/S", "over the ground"),
    ("--rate", "rate", "HZ", "frames per second"),
    ("--seconds", "seconds", "S", "length of the flight; 0: until Ctrl-C"),
    ("--blur", "blur", "PX", "motion blur; -1: as the weather of the seed"),
    ("--haze", "haze", "SHARE", "0 to 0.95; -1: as the weather of the seed"),
    ("--rolling", "rolling_ms", "MS", "rolling shutter, from the first row to the last"),
    ("--drop", "drop", "SHARE", "of frames that never leave the camera"),
    ("--delay", "delay_ms", "MS", "from the exposure to the frame on its topic"),
)
_PAIRS = (
    ("--outage", "outage", "the camera stops: from this second on, for so many seconds"),
    ("--clock-jump", "clock_jump", "the clock jumps: at this second, by so many seconds"),
)


def add_simulate(subparsers) -> argparse.ArgumentParser:
    """Add the command to drone-kd's parser."""
    parser = subparsers.add_parser(
        "simulate", help="publish a procedural or recorded flight as a camera, with ground truth"
    )
    add_flight_options(parser)
    parser.add_argument(
        "--sim-time", action="store_true", help="stamps from 0 on, and the time on /clock"
    )
    parser.add_argument(
        "--network",
        action="store_true",
        help="open to other machines (default: nothing leaves this one)",
    )
    parser.set_defaults(run=_simulate)
    return parser


def add_flight_options(parser: argparse.ArgumentParser) -> None:
    """Add what describes a flight; see `node_arguments`."""
    defaults = parameter_defaults("camera.yaml")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--scene", choices=SCENES, default="", help="default: any place")
    what.add_argument("--images", metavar="DIR", help="play a folder of pictures")
    what.add_argument("--video", metavar="FILE", help="play a video")
    what.add_argument("--bag", metavar="BAG", help="play a rosbag2 with one topic of images")
    parser.add_argument(
        "--labels", metavar="FILE", help="ground truth of --images or --video, JSON lines"
    )
    parser.add_argument("--loop", action="store_true", help="play the source for ever")
    parser.add_argument(
        "--size", type=_size, metavar="WxH", help="of the generated frames (default: 1280x720)"
    )
    for option, name, unit, text in _NUMBERS:
        parser.add_argument(
            option,
            dest=name,
            type=type(defaults[name]),
            default=defaults[name],
            metavar=unit,
            help=f"{text} (default: %(default)s)",
        )
    for option, name, text in _PAIRS:
        parser.add_argument(
            option, dest=name, type=float, nargs=2, default=defaults[name], metavar="S", help=text
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
        "source": source,
        "labels": arguments.labels or "",
        "loop": arguments.loop,
        **{name: getattr(arguments, name) for _, name, *_ in _NUMBERS},
        **{name: getattr(arguments, name) for _, name, _ in _PAIRS},
    }
    if arguments.size:
        values["width"], values["height"] = arguments.size
    return ros_arguments(values)


def ros_arguments(values: dict) -> list[str]:
    """Parameters for the command line of a node."""
    command = ["--ros-args"]
    for name, value in values.items():
        text = f'"{value}"' if isinstance(value, str) else str(value).lower()
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


def _simulate(arguments: argparse.Namespace) -> int:
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
