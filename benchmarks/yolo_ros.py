"""Runner of yolo_ros (github.com/mgonzs13/yolo_ros), the most used package of its kind.

    python -m benchmarks.yolo_ros --ros-args ...    the node, active

Its last version in Python needs two packages without wheels: its messages, which are compiled
here, and cv_bridge, which a free view of the pixels replaces.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from interfaces import build

ENVIRONMENT = "BENCHMARK_YOLO_ROS"

_STAND_INS = {
    "cv_bridge/__init__.py": """
import numpy

class CvBridge:
    def imgmsg_to_cv2(self, message, desired_encoding):
        assert message.encoding == desired_encoding == "bgr8"
        return numpy.frombuffer(message.data, "uint8").reshape(message.height, message.width, 3)
""",
    # A service that only open-vocabulary models offer.
    "yolo_msgs/srv/__init__.py": "class SetClasses:\n    Request = Response = None\n",
}


def restart_with(checkout: Path) -> None:
    """Build the dependencies of yolo_ros, and restart this program where they can be imported."""
    folder = Path(tempfile.mkdtemp(prefix="yolo_ros-"))
    interfaces = folder / "yolo_msgs"
    shutil.copytree(checkout / "yolo_msgs", interfaces)
    for path in (interfaces / "msg").glob("*.msg"):
        path.write_text(re.sub(r"\byolo_msgs/", "", path.read_text()))
    build.INTERFACES = folder
    print("building yolo_msgs, which takes a minute", flush=True)
    (folder / "work").mkdir()
    package = build.build("yolo_msgs", folder / "work")
    site = folder / "site"
    shutil.move(package, site / "yolo_msgs")
    for name, text in _STAND_INS.items():
        (site / name).parent.mkdir(exist_ok=True)
        (site / name).write_text(text)
    extension = next((site / "yolo_msgs").glob("*.so"))
    for typesupport in build.TYPESUPPORTS:
        (site / f"libyolo_msgs__{typesupport}.so").symlink_to(extension)
    for name, paths in (
        ("PYTHONPATH", [site, checkout / "yolo_ros"]),
        ("LD_LIBRARY_PATH", [site, Path(sys.prefix) / "lib"]),
    ):
        os.environ[name] = os.pathsep.join([*map(str, paths), os.environ.get(name, "")])
    os.environ[ENVIRONMENT] = str(folder)
    os.environ |= {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "False", "YOLO_VERBOSE": "False"}
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  itself again


def main() -> None:
    """Run the node until SIGINT."""
    import rclpy
    from rclpy.executors import ExternalShutdownException
    from yolo_ros.yolo_node import YoloNode

    rclpy.init()
    node = YoloNode()
    node.trigger_configure()
    node.trigger_activate()
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(node)


if __name__ == "__main__":
    main()
