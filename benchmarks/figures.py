"""Measured figures in the text of a page, and the numbers in its tables.

A measured figure is a number with decimals, or one before a percent or times sign, "points", "ms",
"MB", or before "of" or "against" and another number. With an interval behind it, both are one
figure. Left out: code, links, headings, comments, versions ("4.6.1") and tables that a command
writes. A setting is written as code.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK = re.compile(
    r"(?<=<!-- table: )([\w./-]+)( -->\n\n)((?:(?!<!--).)*)(\n<!-- end -->)", re.DOTALL
)
_LEFT_OUT = re.compile(
    r"<!-- table: .*?<!-- end -->|<!--.*?-->|```.*?```|^(?:    [^\n]*\n?)+|^#[^\n]*|`[^`]*`"
    r"|\]\([^)]*\)|\b[\w.-]*\d+\.\d+\.\d[\w.]*",
    re.DOTALL | re.MULTILINE,
)
_NUMBER = re.compile(r"(?<![\w.:/])[+-]?\d+(?:,\d{3})*(?:\.\d+)?(?![\w:/])(?!\.\d)")
_INTERVAL = re.compile(rf"{_NUMBER.pattern} \[[-+\d., ]+\]")
_FIGURE = re.compile(rf"{_INTERVAL.pattern}|{_NUMBER.pattern}")
_MEASURED = re.compile(r"\s?(%|\u00d7|points?\b|ms\b|MB\b|(of|against) \d)")
_LINK = re.compile(r"\]\(([\w./-]+)\.md(#[\w-]+)?\)")
_SECTION = re.compile(r"^(?=## )", re.MULTILINE)


@dataclass(frozen=True)
class Figure:
    """A measured figure in a text.

    Attributes:
        line: from 1.
        text: as printed.
        pages: results pages linked beside it, "node", or sections of them, "node#start".
        own: numbers in the tables of its section; before the first section, of the whole page.
    """

    line: int
    text: str
    pages: frozenset[str]
    own: frozenset[str]


def measured(page: str, folder: str) -> Iterator[Figure]:
    """Yield the measured figures in the text of a page.

    Args:
        page: in Markdown.
        folder: of the page in the repository, to which its links are relative, e.g. "docs".
    """
    number = 0
    for section in _SECTION.split(page):
        own = in_tables(section if section.startswith("## ") else page)
        text = _LEFT_OUT.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), section)
        for line, pages in zip(text.splitlines(), _links(section, folder), strict=True):
            number += 1
            for match in _FIGURE.finditer(line):
                if "." in match[0] or _MEASURED.match(line, match.end()):
                    yield Figure(number, match[0], pages, own)


def in_tables(page: str) -> frozenset[str]:
    """Return the numbers in the tables that a command writes, with and without their signs."""
    tables = "".join(block[2] for block in BLOCK.findall(page))
    found = {*_NUMBER.findall(tables), *_INTERVAL.findall(tables)}
    return frozenset(found | {number.lstrip("+-") for number in found})


def by_link(name: str, page: str) -> dict[str, frozenset[str]]:
    """Return the numbers of a page's tables, and those of its sections, by what a link names.

    ``name``: of the page, without suffix; ``page``: its text.
    """
    found = {name: in_tables(page)}
    for section in _SECTION.split(page)[1:]:
        heading = re.sub(r"[^\w\- ]", "", section.partition("\n")[0][3:].lower())
        found[f"{name}#{heading.strip().replace(' ', '-')}"] = in_tables(section)
    return found


def _links(page: str, folder: str) -> list[frozenset[str]]:
    """Return for each line the results pages, or sections of them, linked in its paragraph.

    A row of a table and an item of a list are paragraphs. A row without a link has those of the
    paragraph before its table.
    """
    found: list[frozenset[str]] = []
    before: frozenset[str] = frozenset()
    lines = page.splitlines()
    start = 0
    for end, line in enumerate([*lines, ""]):
        if line.strip() and not line.startswith(("|", "- ")):
            continue
        paragraph = " ".join(lines[start:end])
        pages = frozenset(_results_pages(paragraph, folder))
        if paragraph.startswith("|"):
            pages = pages or before
        elif paragraph.strip():
            before = pages
        found += [pages] * (end - start)
        start = end
    return found


def _results_pages(text: str, folder: str) -> Iterator[str]:
    """Yield what links of a text name; not the page where another one names its section."""
    found = []
    for path, anchor in _LINK.findall(text):
        linked, name = posixpath.split(posixpath.normpath(posixpath.join(folder, path)))
        if linked == "benchmarks":
            found.append((name, anchor))
    for name, anchor in found:
        if anchor or not any(other == name and section for other, section in found):
            yield name + anchor
