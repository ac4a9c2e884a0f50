"""What is installed: one version, on-board code without torch, a command on PATH."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

IMPORT_ALL = """
import importlib, pkgutil, sys

for name in ("torch", "torchvision", "ultralytics"):
    sys.modules[name] = None  # any import of it now raises ImportError

import drone_kd

def fail(name):
    raise ImportError(name)

for module in pkgutil.walk_packages(drone_kd.__path__, "drone_kd.", onerror=fail):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if error.name != "tensorrt":  # JetPack's, and needed by what runs it alone
            raise
    print(module.name)
"""


def run(*command: str, cwd: Path) -> str:
    """Run a command in `cwd` and return its output; fail the test when the command fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_version_is_that_of_package_xml() -> None:
    version = ElementTree.parse(ROOT / "package.xml").findtext("version")
    assert run(sys.executable, "setup.py", "--version", cwd=ROOT).split()[-1] == version


def test_on_board_modules_import_without_torch(tmp_path: Path) -> None:
    pytest.importorskip("rclpy", reason="drone_kd.ros needs ROS 2: source one or `make setup`")
    # Elsewhere than in the repository, so that what is installed is imported.
    modules = run(sys.executable, "-c", IMPORT_ALL, cwd=tmp_path).split()
    assert {"drone_kd.cli", "drone_kd.detector", "drone_kd.ros.detector_node"} <= set(modules)


@pytest.mark.skipif(
    sys.prefix == sys.base_prefix, reason="colcon puts drone-kd into lib/drone_kd, not on PATH"
)
def test_command_is_installed(tmp_path: Path) -> None:
    assert "detect" in run(str(Path(sys.prefix, "bin", "drone-kd")), "--help", cwd=tmp_path)


def test_colcon_ignores_interfaces() -> None:
    # Without it, colcon could build a second vision_msgs over that of the distribution.
    assert (ROOT / "interfaces" / "COLCON_IGNORE").exists()
