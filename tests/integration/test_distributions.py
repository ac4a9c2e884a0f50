"""Messages of the nodes are the same in every ROS 2 distribution, by their type hashes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

typesys = pytest.importorskip("rosbags.typesys", reason="pip install 'drone_kd[record]'")

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
    """Return the type hashes of those messages; vision_msgs, an add-on, is that of interfaces/."""
    known = getattr(typesys.Stores, f"ROS2_{distribution}", None)
    if known is None:
        pytest.skip(f"this version of rosbags does not know {distribution.capitalize()}")
    store = typesys.get_typestore(known)
    for path in (ROOT / "interfaces/vision_msgs/msg").glob("*.msg"):
        definition = path.read_text(encoding="utf-8")
        store.register(typesys.get_types_from_msg(definition, f"vision_msgs/msg/{path.stem}"))
    return {name: store.hash_rihs01(name) for name in messages()}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_messages_are_those_of_the_distribution_that_the_tests_use(distribution: str) -> None:
    got = hashes(distribution)
    assert got["vision_msgs/msg/Detection2DArray"] == DETECTIONS
    assert {"sensor_msgs/msg/Image", "diagnostic_msgs/msg/DiagnosticArray"} <= set(got)
    assert got == hashes("KILTED")
