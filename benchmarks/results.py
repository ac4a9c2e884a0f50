# SPDX-License-Identifier: AGPL-3.0-or-later
"""Write the tables of the results pages from CSV files, or check them and the text around them.

    python -m benchmarks.results                          write the tables
    python -m benchmarks.results --check                  change nothing, print what does not fit
    python -m benchmarks.results --add runs/hit-uav/compare.csv distillation/hit-uav "HIT-UAV"

A page holds ``<!-- table: NAME -->`` and ``<!-- end -->``; the lines between them are written.
NAME is a table of `benchmarks.result_tables`, or a CSV file below benchmarks/ without its suffix,
which is printed as it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from re import Match

from benchmarks import figures, runs
from benchmarks.result_tables import TABLES
from benchmarks.runs import UNMATCHED, read_rows
from benchmarks.tables import Table, render
from drone_kd.files import write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "docs/results.md"


def written(page: Path) -> str:
    """Return the text of a page of benchmarks/ with its tables as the CSV files give them.

    Raises:
        ValueError: a table does not fit its CSV file, or has none.
    """
    text, number = figures.BLOCK.subn(partial(_block, page), page.read_text(encoding="utf-8"))
    if number != text.count("<!-- table:") or number != text.count("<!-- end -->"):
        raise ValueError(
            f"{page.name}: expected each table as <!-- table: NAME -->, an empty line, the table, "
            "an empty line, <!-- end -->; correct the comments"
        )
    return text


def _block(page: Path, match: Match[str]) -> str:
    name, start, _, end = match.groups()
    try:
        return f"{name}{start}{render(TABLES.get(name, Table(name)), page.parent)}{end}"
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{page.name}: table {name}: {error!s}") from error


def check(root: Path) -> Iterator[str]:
    """Yield each thing that does not fit, one line with file, line, figure and what to do.

    Args:
        root: a copy of the repository: README.md (its section Results is checked), docs/ (where
            a paragraph links a results page) and benchmarks/.
    """
    folder = root / "benchmarks"
    yield from runs.gaps(folder)
    for page in sorted(folder.glob("*.md")):
        if page.read_text(encoding="utf-8") != written(page):
            yield f"benchmarks/{page.name}: tables differ from the CSV files; run make results"
    yield from _unmatched(root)


def _unmatched(root: Path) -> Iterator[str]:
    """Yield the figures that are in no table, and those named in vain."""
    folder = root / "benchmarks"
    pages = {page.stem: page for page in sorted(folder.glob("*.md"))}
    known: dict[str, frozenset[str]] = {}
    for name, page in pages.items():
        known |= figures.by_link(name, page.read_text(encoding="utf-8"))
    named = {(row["page"], row["figure"]) for row in read_rows(folder / UNMATCHED)}
    used = set()
    docs = sorted((root / "docs").rglob("*.md"))
    for page in (root / "README.md", *docs, *pages.values()):
        name = str(page.relative_to(root))
        guide = page in docs and name != RESULTS
        for figure in figures.measured(_results_of(page), str(page.parent.relative_to(root))):
            if guide and not figure.pages:
                continue  # nothing says that it is a result
            linked = (known.get(link, frozenset()) for link in figure.pages)
            if figure.text in figure.own.union(*linked):
                continue
            if (name, figure.text) in named:
                used.add((name, figure.text))
                continue
            yield (
                f"{name}:{figure.line}: {figure.text} is in no table of its section or of a "
                f"page linked beside it: correct it, link the page, or name it in {UNMATCHED}"
            )
    for name, text in sorted(named - used):
        yield f"benchmarks/{UNMATCHED}: {name} has no {text} without a table: delete the row"


def _results_of(page: Path) -> str:
    """Return the text of a page; of README.md the section Results, at its lines."""
    text = page.read_text(encoding="utf-8")
    if page.name != "README.md":
        return text
    before, heading, after = text.partition("\n## Results\n")
    return "\n" * (before + heading).count("\n") + after.partition("\n## ")[0]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 1 if something does not fit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument(
        "--add",
        nargs=3,
        metavar=("CSV", "NAME", "WHAT"),
        help="keep a CSV that has provenance.json beside it under a name, and say what it is",
    )
    given = parser.parse_args(arguments)
    folder = ROOT / "benchmarks"
    try:
        if given.add:
            runs.add(Path(given.add[0]), given.add[1], given.add[2], folder)
        elif given.check:
            return _report(list(check(ROOT)))
        for page in sorted(folder.glob("*.md")):
            write_text(page, written(page))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _report(found: list[str]) -> int:
    for line in found:
        print(line)
    print(f"{len(found)} faults" if found else "All figures are in the CSV files")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
