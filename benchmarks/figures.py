"""Measured figures in the text of a page, and the table that each comes from.

A measured figure is a number with decimals, or one before a percent or times sign, "points" or a
unit of time, memory or rate ("3 to 5 ms": both), or before "of" or "against" and another number,
also on the next line. With an interval behind it, both are one figure. Left out: code, links,
comments, versions ("4.6.1") and tables that a command writes. A setting is written as code.

benchmarks/cited.csv has one row per figure, page by page in the order of the text: the table, the
line by its first cells ("recipe | 0.3"), the column, and the place of the number in the cell
(default 1). What no table has stands there itself, with a reason; several in a row as "3.10 3.13".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.runs import CITED, Row

BLOCK = re.compile(
    r"(?<=<!-- table: )([\w./-]+)( -->\n\n)((?:(?!<!--).)*)(\n<!-- end -->)", re.DOTALL
)
_LEFT_OUT = re.compile(
    r"<!-- table: .*?<!-- end -->|<!--.*?-->|```.*?```|^(?:    [^\n]*\n?)+|`[^`]*`"
    r"|\]\([^)]*\)|\b[\w.-]*\d+\.\d+\.\d[\w.]*",
    re.DOTALL | re.MULTILINE,
)
_NUMBER = re.compile(r"(?<![\w.:/])[+-]?\d+(?:,\d{3})*(?:\.\d+)?(?![\w:/])(?!\.\d)")
_INTERVAL = re.compile(rf"{_NUMBER.pattern} \[[-+\d., ]+\]")
_FIGURE = re.compile(rf"{_INTERVAL.pattern}|{_NUMBER.pattern}")
_MEASURED = re.compile(
    r"(\s(?:to|and|or)\s[+-]?\d[\d.,]*)?\s?"
    r"(%|\u00d7|(percent|x(?! \d)|points?|ms|s|seconds?|min|minutes?|hours?|MB|GB|Hz|fps)\b"
    r"|(of|against)\s\d)"
)
_LINK = re.compile(r"\]\((\.\./)*benchmarks/[\w-]+\.md[#)]")


@dataclass(frozen=True)
class Figure:
    """A measured figure in a text.

    Attributes:
        line, start: from 1; from 0, in the line.
        text: as printed.
        linked: its paragraph links a results page.
    """

    line: int
    start: int
    text: str
    linked: bool


@dataclass(frozen=True)
class Source:
    """What a figure of a text must be.

    Attributes:
        name: where it comes from, for messages.
        texts: the number as in its table, without its sign, and both with its interval.
    """

    name: str
    texts: tuple[str, ...]


def measured(page: str) -> Iterator[Figure]:
    """Yield the measured figures in the text of a page in Markdown."""
    text = _LEFT_OUT.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), page)
    linked = _linked(page)
    for match in _FIGURE.finditer(text):
        if "." in match[0] or _MEASURED.match(text, match.end()):
            number = text.count("\n", 0, match.start())
            start = match.start() - text.rfind("\n", 0, match.start()) - 1
            yield Figure(number + 1, start, match[0], linked[number])


def _linked(page: str) -> list[bool]:
    """Return for each line whether its paragraph links a results page.

    A row of a table and an item of a list are paragraphs. A row without a link has that of the
    paragraph before its table.
    """
    found: list[bool] = []
    before = False
    lines = page.splitlines()
    start = 0
    for end, line in enumerate([*lines, ""]):
        if line.strip() and not line.startswith(("|", "- ")):
            continue
        paragraph = " ".join(lines[start:end])
        linked = _LINK.search(paragraph) is not None
        if paragraph.startswith("|"):
            linked = linked or before
        elif paragraph.strip():
            before = linked
        found += [linked] * (end - start)
        start = end
    return found


def sources(row: Row, tables: Mapping[str, Sequence[Sequence[str]]]) -> Iterator[Source]:
    """Yield what the next figures of a page must be.

    Args:
        row: of cited.csv.
        tables: name -> its lines, the first of which is the header.

    Raises:
        ValueError: the row names no number of a table.
    """
    if row["table"]:
        yield _source(row, tables)
    elif row["figure"] and row["reason"]:
        yield from (Source(row["reason"], (text,)) for text in row["figure"].split())
    else:
        raise ValueError("expected a table, or a figure and a reason, got neither; add them")


def _source(row: Row, tables: Mapping[str, Sequence[Sequence[str]]]) -> Source:
    table, key, column = row["table"], row["row"], row["column"]
    name = f"table {table}, row {key}, column {column}"
    if table not in tables:
        raise ValueError(f"{name}: expected a table of a page, got none of this name; correct it")
    header, *lines = tables[table]
    found = [line for line in lines if " | ".join([*line, ""]).startswith(f"{key} | ")]
    if len(found) != 1 or column not in header:
        known = ", ".join(header)
        raise ValueError(
            f"{name}: expected one row and a column of {known}, got {len(found)} rows; correct it"
        )
    cell = found[0][header.index(column)]
    numbers = list(_NUMBER.finditer(cell))
    place = row["number"] or "1"
    if not place.isdecimal() or place == "0":
        raise ValueError(
            f"expected a place from 1 in the column number, got {place!r}; correct it"
        )
    if int(place) > len(numbers):
        raise ValueError(f"{name}: expected number {place} in {cell!r}, got fewer; correct it")
    number = numbers[int(place) - 1]
    interval = _INTERVAL.match(cell, number.start())
    texts = [number[0], number[0].lstrip("+-"), *([interval[0]] if interval else [])]
    return Source(name, tuple(texts))


def compare(page: str, text: str, expected: Sequence[Source], guide: bool) -> Iterator[str]:
    """Yield each figure of a text that is not what it must be, as one line.

    Args:
        page: its path, for the lines.
        text: in Markdown.
        expected: from `sources`.
        guide: only figures in a paragraph with a link to a results page count.
    """
    found = [figure for figure in measured(text) if figure.linked or not guide]
    pairs = enumerate(zip(found, expected, strict=False))
    differ = [i for i, (figure, source) in pairs if figure.text not in source.texts]
    if len(found) == len(expected):
        for i in differ:
            yield (
                f"{page}:{found[i].line}: expected {expected[i].texts[0]} ({expected[i].name}), "
                f"got {found[i].text}; correct the figure or its row in {CITED}"
            )
        return
    first = min([*differ, len(found), len(expected)])
    shown = f"line {found[first].line}, {found[first].text}" if first < len(found) else "its end"
    name = expected[first].name if first < len(expected) else "none"
    yield (
        f"{page}: expected {len(expected)} figures, as in {CITED}, got {len(found)}; the first "
        f"difference is at {shown}, its row: {name}; add or delete rows"
    )
