"""Parameters given at startup that have no effect: ROS ignores a misspelt name silently."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from rclpy.node import Node

from drone_kd.parsing import ParseError, read_yaml
from drone_kd.text import one_line

# What rclpy itself may declare, on some distributions or with a publisher.
_RESERVED = re.compile(r"use_sim_time|start_type_description_service|qos_overrides\..*", re.DOTALL)
_SHOWN_LINES = 10


def ignored_parameters(node: Node, known: Collection[str]) -> list[str]:
    """Return a line for each name, and for each file, that was given at startup without effect.

    They cannot be refused: a section `/**` may be meant for several nodes, and ROS does not tell
    from which section a value came.

    Args:
        node: reads the files after `--params-file` of this process's command line.
        known: names of the parameters that it declares.
    """
    given: Collection[str] = getattr(node, "_parameter_overrides", ())  # without a public name
    lines = []
    for name in sorted(given):
        if name not in known and not _RESERVED.fullmatch(name):
            near = difflib.get_close_matches(name[:200], known, 1)
            hint = f"did you mean {near[0]}?" if near else "see ros2 param list"
            lines.append(f"Unknown parameter {one_line(name, 50)} has no effect: {hint}")
    for option, file in zip(sys.argv, sys.argv[1:], strict=False):
        if option == "--params-file":
            lines += _without_section(file, node.get_fully_qualified_name())
    if len(lines) > _SHOWN_LINES:
        lines[_SHOWN_LINES:] = [f"{len(lines) - _SHOWN_LINES} more names have no effect"]
    return lines


def _without_section(file: str, node: str) -> list[str]:
    """Return a line if a parameter file has no section for a node; none: it has one."""
    try:
        sections = list(_sections(read_yaml(Path(file))))
    except ParseError:  # ROS has read it
        return []
    if any(_pattern(section).fullmatch(node) for section in sections):
        return []
    got = " and ".join(sections[:5]) or "none"
    return [
        f"Parameter file {one_line(file)} has no effect: expected a section {node} or /**, got "
        f"{one_line(got)}"
    ]


def _sections(content: Any, name: str = "") -> Iterator[str]:
    """Yield the full names of the sections of a parsed file; keys above them are namespaces."""
    if not isinstance(content, dict):
        return
    if "ros__parameters" in content:
        yield name or "/"
        return
    for key, value in content.items():
        yield from _sections(value, f"{name}/{str(key).strip('/')}")


def _pattern(section: str) -> re.Pattern[str]:
    """Return the names of nodes that a section is for: `*` is a name, `**` any number of them."""
    text = re.escape(section).replace(r"/\*\*", r"(/\w+)*").replace(r"/\*", r"/\w+")
    return re.compile(text)
