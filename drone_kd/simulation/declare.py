"""ROS parameters of the simulation's nodes: camera, scorer, gazebo_truth; all are read-only."""

from __future__ import annotations

from rclpy.node import Node

from drone_kd.ros.declare import declare_read_only, integer, number, other


def declare_camera_parameters(node: Node) -> None:
    """Declare the camera's parameters; see `drone_kd.ros.declare.declare`."""
    descriptors = {
        "source": other("Image folder, image or video; empty: a procedural flight."),
        "labels": other("Boxes of the source as JSON lines, published as ground truth."),
        "loop": other("Restart at the end of the source; false: exit."),
        "rate": number("Frames per second.", 0.1, 240.0),
        "seconds": number("Exit after this time; 0: never.", 0.0, 86400.0),
        "frame_id": other("frame_id of the image headers."),
        "scene": other("Scene of the procedural flight; empty: any."),
        "weather": other("Weather of the procedural flight; empty: the scene's own."),
        "flight": other("Flight of the procedural flight, such as orbit+gusts."),
        "seed": integer("Seed of the procedural flight.", 0, 2**31 - 1),
        "width": integer("Image width of the procedural flight in pixels.", 64, 8192),
        "height": integer("Image height of the procedural flight in pixels.", 64, 8192),
        "altitude": number("Height above ground in m; 0: varies.", 0.0, 150.0),
        "speed": number("Ground speed in m/s.", 0.0, 100.0),
        "blur": number("Motion blur in pixels; -1: from the seed.", -1.0, 64.0),
        "haze": number("Haze, fraction of the light; -1: from the seed.", -1.0, 0.95),
        "rolling_ms": number("Rolling shutter: first to last row, in ms.", 0.0, 100.0),
        "drop": number("Fraction of frames that are not sent.", 0.0, 1.0),
        "delay_ms": number("From exposure to publication, in ms.", 0.0, 10000.0),
        "outage": other("Silence of the camera: [start, length] in s."),
        "clock_jump": other("Jump of the clock: [time, step] in s."),
        "sim_time": other("Stamps start at 0 and are published on /clock."),
        "listeners": integer("Wait for this many subscribers before the first frame.", 0, 100),
    }
    declare_read_only(node, "camera.yaml", descriptors)


def declare_scorer_parameters(node: Node) -> None:
    """Declare the scorer's parameters; see `drone_kd.ros.declare.declare`."""
    descriptors = {
        "output": other("Folder for the flight record and the images."),
        "confidence": number("Minimum score of a counted detection.", 0.0, 1.0),
        "pictures": integer("Number of images with the worst misses to keep; 0: none.", 0, 100),
        "rate": number("Rate asked of the camera in Hz, for the record; 0: unknown.", 0.0, 240.0),
        "label_names": other("Names of the labels 0, 1, ... of a bounding-box camera."),
    }
    declare_read_only(node, "scorer.yaml", descriptors)


def declare_gazebo_truth_parameters(node: Node) -> None:
    """Declare the parameters of gazebo_truth; see `drone_kd.ros.declare.declare`."""
    descriptors = {
        "shapes": other("File with the shapes of the objects in the world."),
        "camera": other("Camera of the drone: front or down."),
    }
    declare_read_only(node, "gazebo_truth.yaml", descriptors)
