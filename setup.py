"""Packaging for colcon (ament_python) and pip; version and maintainer are in package.xml alone."""

# Python 3.8 has to run this file as far as it says that it is too old.

from __future__ import annotations

import platform
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from setuptools import find_packages, setup

if sys.version_info < (3, 10):  # noqa: UP036  colcon does not know python_requires
    sys.exit(
        f"drone_kd: expected Python 3.10 or newer, got {platform.python_version()}; on a Jetson: "
        "JetPack 6 or 7, as JetPack 5 has Python 3.8"
    )

# Resolved: `colcon build --symlink-install` runs a link to this file, in its build folder.
folder = Path(__file__).resolve().parent
manifest = ElementTree.parse(folder / "package.xml")
maintainer = manifest.find("maintainer")
name = "drone_kd"
# What the tests run on: docs/platforms.md.
pythons = ("3.10", "3.11", "3.12", "3.13", "3.14")
parts = ("onboard", "record", "video", "simulation", "cluster")


def shared(*patterns: str) -> list[str]:
    """Return the files of the checkout that match, relative to it."""
    found = (path for pattern in patterns for path in folder.glob(pattern))
    return sorted(str(path.relative_to(folder)) for path in found)


def requirements(file: str) -> list[str]:
    """Return the requirements of a file of requirements/ and of the files that it includes."""
    names = []
    for line in (folder / "requirements" / file).read_text().splitlines():
        if line.startswith("-r "):
            names += requirements(line[3:])
        elif line and not line.startswith("#"):
            names.append(line)
    return names


setup(
    name=name,
    version=manifest.findtext("version"),
    description=manifest.findtext("description"),
    license="Apache-2.0",
    python_requires=">=3.10",
    maintainer=maintainer.text,
    maintainer_email=maintainer.get("email"),
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: {version}" for version in pythons),
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    packages=find_packages(include=[name, f"{name}.*"]),
    package_data={name: ["py.typed", "data/*", "models/*"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{name}"]),
        (f"share/{name}", ["package.xml"]),
        (f"share/{name}/launch", shared("launch/*.launch.py")),
        (f"share/{name}/config", shared("config/*.yaml", "config/*.xml")),
        (f"share/{name}/config/sros2", shared("config/sros2/*.xml")),
        (f"share/{name}/worlds", shared("worlds/*.sdf", "worlds/*.yaml")),
        (f"share/{name}/worlds/aerial_traffic", shared("worlds/aerial_traffic/*")),
    ],
    extras_require={
        # colcon runs pytest for a package whose `test` extra names it.
        "test": ["pytest>=7.4,<10"],
        # Not install_requires: a ROS installation brings its own numpy and OpenCV.
        **{part: requirements(f"{part}.txt") for part in parts},
    },
    zip_safe=True,
    entry_points={
        "console_scripts": [
            "drone-kd = drone_kd.cli:main",
            "detector = drone_kd.ros.detector:main",
            "camera = drone_kd.simulation.camera_node:main",
            "scorer = drone_kd.simulation.scorer_node:main",
            "gazebo_truth = drone_kd.simulation.gazebo_truth_node:main",
        ]
    },
)
