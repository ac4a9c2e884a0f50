"""MkDocs hooks: generated pages, and links to files of the repository.

Generated, never committed: the commands from their parsers, the node parameters from their
declarations, and one page for each results file in benchmarks/. ROS 2 and torch are not required.
"""

from __future__ import annotations

import argparse
import os
import posixpath
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]

CODE = (str(ROOT), str(ROOT / "training"))
RESULTS = "results"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    from mkdocs.structure.files import File  # deferred: the tests run without MkDocs

    sys.path[:0] = CODE
    pages = {"reference/commands.md": commands(), "reference/parameters.md": parameters()}
    for source in sorted((ROOT / "benchmarks").glob("*.md")):
        pages[f"{RESULTS}/{source.name}"] = source.read_text(encoding="utf-8")
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Show CONTRIBUTING.md on its page, and make links to repository files work in the site."""
    uri = page.file.src_uri
    guide = ROOT / "CONTRIBUTING.md"
    if uri == "contribute.md" and guide.is_file():
        return _relink(guide.read_text(encoding="utf-8"), "CONTRIBUTING.md", uri)
    return _relink(markdown, _repository_path(uri), uri)


def commands() -> str:
    """Return the page of all commands of drone-kd, from their parsers."""
    from drone_kd.cli import ON_BOARD, TRAINING, build_parser

    lines = ["# Commands", "", "`drone-kd COMMAND [OPTIONS]`; generated from the parsers.", ""]
    for title, table in (("On board", ON_BOARD), ("Training", TRAINING)):
        lines += [f"## {title}", ""]
        for name in table:
            parser = build_parser(name)[1][name]
            lines += [f"### {name}", "", f"{parser.description}", "", "```text"]
            lines += [_usage(parser), "```", ""]
            for group in parser._action_groups:
                lines += _options(parser, group)
    return "\n".join(lines)


def parameters() -> str:
    """Return the page of all node parameters, from their declarations."""
    lines = ["# Node parameters", ""]
    lines += ["Generated from the declarations. Defaults: the files in `config/`.", ""]
    for name, declare in _declarations():
        node = _Recorder()
        declare(node)
        lines += [f"## {name}", "", "| parameter | default | range | |", "|---|---|---|---|"]
        for parameter, default, descriptor in node.declared:
            fixed = " Fixed at startup." if descriptor.read_only else ""
            cells = [f"`{parameter}`", f"`{default!r}`", _range(descriptor)]
            lines.append(_row([*cells, _escape(descriptor.description) + fixed]))
        lines.append("")
    return "\n".join(lines)


class _Message:
    """Stands in for a message of rcl_interfaces."""

    def __init__(self, **fields: Any) -> None:
        self.read_only = False
        self.floating_point_range: list[_Message] = []
        self.integer_range: list[_Message] = []
        self.__dict__.update(fields)


class _Recorder:
    """Stands in for a node, and records the parameters that are declared on it."""

    def __init__(self) -> None:
        self.declared: list[tuple[str, Any, Any]] = []

    def declare_parameter(self, name: str, default: Any, descriptor: Any) -> None:
        self.declared.append((name, default, descriptor))


def _declarations() -> Iterator[tuple[str, Callable[[Any], None]]]:
    """Yield the nodes and their functions that declare parameters."""
    messages = ("FloatingPointRange", "IntegerRange", "ParameterDescriptor")
    stand_ins = {
        "rclpy": ModuleType("rclpy"),
        "rclpy.node": _module("rclpy.node", Node=_Recorder),
        "rcl_interfaces": ModuleType("rcl_interfaces"),
        "rcl_interfaces.msg": _module("rcl_interfaces.msg", **dict.fromkeys(messages, _Message)),
    }
    with patch.dict(sys.modules, stand_ins):
        from drone_kd.ros import declare
        from drone_kd.simulation import declare as declare_simulation
    yield "detector", declare.declare_detector_parameters
    for name in ("camera", "scorer", "gazebo_truth"):
        yield name, getattr(declare_simulation, f"declare_{name}_parameters")


def _module(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(members)
    return module


def _range(descriptor: Any) -> str:
    for limits in (*descriptor.floating_point_range, *descriptor.integer_range):
        return f"{limits.from_value:g} to {limits.to_value:g}"
    return ""


def _usage(parser: argparse.ArgumentParser) -> str:
    with patch.dict(os.environ, COLUMNS="90"):
        return parser.format_usage().removeprefix("usage: ").strip()


def _options(parser: argparse.ArgumentParser, group: Any) -> list[str]:
    """Return a table of one group of options, as lines of Markdown."""
    formatter = parser._get_formatter()
    rows = [
        _row([f"`{formatter._format_action_invocation(action)}`", _escape(text)])
        for action in group._group_actions
        if action.dest != "help"
        and action.help != argparse.SUPPRESS
        and (text := formatter._expand_help(action))
    ]
    if not rows:
        return []
    title = "arguments" if group.title == "positional arguments" else group.title
    return [f"| {title} | |", "|---|---|", *rows, ""]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _escape(text: str) -> str:
    return re.sub(r"([<>*_`\[\]])", r"\\\1", text)


def _repository_path(uri: str) -> str:
    """Return the path of a page's source in the repository."""
    folder, _, name = uri.rpartition("/")
    return f"benchmarks/{name}" if folder == RESULTS else f"docs/{uri}"


def _relink(markdown: str, source: str, uri: str) -> str:
    """Replace links relative to `source` in the repository by links relative to a page."""

    def replace(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        path, hash_sign, anchor = target.partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return match[0]
        linked = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        folder, _, name = linked.rpartition("/")
        if folder == "benchmarks" and name.endswith(".md"):
            page = f"{RESULTS}/{name}"
        elif linked.startswith("docs/"):
            page = linked.removeprefix("docs/")
        elif linked == "CONTRIBUTING.md":
            page = "contribute.md"
        else:  # a file that is not in the site
            return text if text.strip("`") == linked else f"{text} (`{linked}`)"
        relative = posixpath.relpath(page, posixpath.dirname(uri) or ".")
        return f"{mark}[{text}]({relative}{hash_sign}{anchor})"

    return LINK.sub(replace, markdown)
