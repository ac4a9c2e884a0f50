"""ROS 2 distributions: types of the messages, numpy beside them, their Python."""

from __future__ import annotations

import ast
import os
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
DISTRIBUTIONS = ("HUMBLE", "JAZZY", "KILTED", "LYRICAL")
DETECTIONS = "RIHS01_214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968"


def messages() -> set[str]:
    """Return the names of the messages that on-board modules import."""
    return {
        f"{node.module.replace('.', '/')}/{alias.name}"
        for path in (ROOT / "drone_kd").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("_msgs.msg")
        for alias in node.names
    }


def hashes(distribution: str) -> dict[str, str]:
    """Return the type hashes of those messages; add-ons are those of interfaces/."""
    typesys = pytest.importorskip("rosbags.typesys", reason="pip install 'drone_kd[record]'")
    known = getattr(typesys.Stores, f"ROS2_{distribution}", None)
    if known is None:
        pytest.skip(f"this version of rosbags does not know {distribution.capitalize()}")
    store = typesys.get_typestore(known)
    for path in (ROOT / "interfaces").glob("*/msg/*.msg"):
        definition, package = path.read_text(encoding="utf-8"), path.parent.parent.name
        store.register(typesys.get_types_from_msg(definition, f"{package}/msg/{path.stem}"))
    return {name: store.hash_rihs01(name) for name in messages()}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_messages_are_those_of_the_distribution_that_the_tests_use(distribution: str) -> None:
    got = hashes(distribution)
    assert got["vision_msgs/msg/Detection2DArray"] == DETECTIONS
    assert {"sensor_msgs/msg/Image", "diagnostic_msgs/msg/DiagnosticArray"} <= set(got)
    assert got == hashes("KILTED")


@pytest.mark.parametrize(
    ("python", "numpy_1"), [("3.10", True), ("3.12", True), ("3.13", False), ("3.14", False)]
)
def test_numpy_stays_below_2_where_the_distribution_has_numpy_1(
    python: str, numpy_1: bool
) -> None:
    lines = (ROOT / "requirements/sourced.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line.startswith("numpy")]
    in_force = [
        r for r in found if r.marker is None or r.marker.evaluate({"python_version": python})
    ]
    assert any("2.0.0" not in requirement.specifier for requirement in in_force) == numpy_1


@pytest.mark.parametrize(
    ("version", "distro", "says"),
    [
        ("3.14", "", "or source a ROS 2"),
        ("3.14", "lyrical", ""),
        ("3.9", "lyrical", "expected Python 3.10 to 3.14, received 3.9"),
    ],
)
def test_setup_takes_python_3_14_beside_a_ros_installation(
    version: str, distro: str, says: str, tmp_path: Path
) -> None:
    python = tmp_path / "python3"
    python.write_text(f"#!/bin/sh\necho {version}\n")
    python.chmod(0o700)
    done = subprocess.run(
        ["sh", ROOT / "requirements/check.sh", python],
        env={**os.environ, "ROS_DISTRO": distro},
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) == (not says)
    assert says in done.stderr and done.stderr.count("\n") == (1 if says else 0)
