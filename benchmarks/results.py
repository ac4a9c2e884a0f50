# SPDX-License-Identifier: AGPL-3.0-or-later
"""Write the tables of the results pages from CSV files, or check them and the text around them.

    python -m benchmarks.results                          write the tables
    python -m benchmarks.results --check                  change nothing, print what does not fit
    python -m benchmarks.results --add runs/hit-uav/compare.csv distillation/hit-uav "HIT-UAV"

A page (README.md, docs/, benchmarks/) holds ``<!-- table: NAME -->`` and ``<!-- end -->``; the
lines between them are written. NAME is a table of `benchmarks.result_tables`, or a CSV file below
benchmarks/ without its suffix, which is printed as it is. benchmarks/cited.csv names the table,
line and column of each figure in the text around them (see `benchmarks.figures`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from re import Match

from benchmarks import figures, runs
from benchmarks.result_tables import TABLES
from benchmarks.runs import CITED, read_rows, read_text
from benchmarks.tables import Table, cells, markdown
from drone_kd.files import write_text

ROOT = Path(__file__).resolve().parents[1]
# Pages of docs/ whose figures are all results.
RESULTS = ("docs/results.md", "docs/default-model.md")
CITED_COLUMNS = ("page", "table", "row", "column", "number", "figure", "reason")


class Pages:
    """README.md, docs/ and benchmarks/ of a copy of the repository, with their tables.

    Args:
        root: of the repository.

    Raises (all methods):
        ValueError: a page, table or CSV file is not as expected.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / "benchmarks"
        docs, results = sorted(root.glob("docs/**/*.md")), sorted(self.folder.glob("*.md"))
        found = [root / "README.md", *docs, *results]
        self.paths = {str(path.relative_to(root)): path for path in found}
        self.texts = {name: read_text(path) for name, path in self.paths.items()}
        self._tables: dict[str, list[list[str]]] = {}

    def written(self, name: str) -> str:
        """Return the text of a page with its tables as the CSV files give them."""
        before = self.texts[name]

        def block(match: Match[str]) -> str:
            table, start, _, end = match.groups()
            return f"{table}{start}{markdown(self._table(name, table))}{end}"

        text, number = figures.BLOCK.subn(block, before)
        if number != before.count("<!-- table:") or number != before.count("<!-- end -->"):
            raise ValueError(
                f"{name}: expected each table as <!-- table: NAME -->, an empty line, the table, "
                "an empty line, <!-- end -->; correct the comments"
            )
        return text

    def _table(self, page: str, name: str) -> list[list[str]]:
        if name not in self._tables:
            try:
                self._tables[name] = cells(TABLES.get(name, Table(name)), self.folder)
            except (OSError, ValueError) as error:
                raise ValueError(f"{page}: table {name}: {error!s}") from error
        return self._tables[name]

    @cached_property
    def sources(self) -> dict[str, list[figures.Source]]:
        """What the figures of each page must be, from cited.csv."""
        tables = {
            block[0]: self._table(page, block[0])
            for page, text in self.texts.items()
            for block in figures.BLOCK.findall(text)
        }
        found: dict[str, list[figures.Source]] = {name: [] for name in self.texts}
        for number, row in enumerate(read_rows(self.folder / CITED, CITED_COLUMNS), start=2):
            try:
                if row["page"] not in found:
                    raise ValueError(f"expected a page, got {row['page']!r}; correct it")
                found[row["page"]] += figures.sources(row, tables)
            except ValueError as error:
                raise ValueError(f"benchmarks/{CITED}:{number}: {error}") from error
        return found

    def wrong(self, name: str, text: str) -> Iterator[str]:
        """Yield each figure of a page's text that is not what its table says."""
        yield from figures.compare(name, text, self.sources[name], is_guide(name))


def is_guide(name: str) -> bool:
    """Return whether only figures beside a link to a results page are results."""
    return name.startswith("docs/") and name not in RESULTS


def check(root: Path) -> Iterator[str]:
    """Yield each thing that does not fit, one line with file, line, figure and what to do.

    Args:
        root: a copy of the repository. All of README.md and benchmarks/ is checked, and in docs/
            the results and each paragraph that links a results page.
    """
    pages = Pages(root)
    yield from runs.gaps(pages.folder)
    for name, text in pages.texts.items():
        if text != pages.written(name):
            yield f"{name}: tables differ from the CSV files; run make results"
    for name, text in pages.texts.items():
        yield from pages.wrong(name, text)


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
        pages = Pages(ROOT)
        texts = {name: pages.written(name) for name in pages.texts}
        for name in texts:
            if texts[name] != pages.texts[name]:
                write_text(pages.paths[name], texts[name])
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
