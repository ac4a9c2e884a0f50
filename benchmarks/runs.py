"""CSV files of the results, and where each comes from: benchmarks/runs.csv, one row per file.

A file is named by its path below benchmarks/ without suffix. What is not known of an old one is
empty, and named in the column "unknown".
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.rig import markdown_head, markdown_row
from drone_kd.files import write_text
from drone_kd.parsing import read_json
from drone_kd.provenance import FIELDS, FILE, provenance
from drone_kd.text import one_line
from drone_kd_training.tables import as_csv

Row = dict[str, str]

FOLDER = Path(__file__).parent
RUNS = "runs.csv"
CITED = "cited.csv"
TEACHER = "teacher"


class Result:
    """A table of a benchmark: printed row by row, and kept as a CSV with its provenance.

    Args:
        run: path of the CSV below the folder, without suffix; one of that name is replaced.
        what: was measured.
        columns: names of the columns.
        known: seeds, classes and image sizes, as in `drone_kd.provenance.FIELDS`.
        folder: benchmarks/.
    """

    def __init__(
        self,
        run: str,
        what: str,
        columns: Sequence[str],
        known: Mapping[str, str],
        folder: Path = FOLDER,
    ) -> None:
        self._run, self._columns, self._folder = run, columns, folder
        self._provenance = {"what": what, **provenance(**known)}
        self._rows: list[Row] = []
        print("\n" + markdown_head(columns), flush=True)

    def add(self, *cells: object) -> None:
        """Print a row and write both files."""
        print(markdown_row(cells), flush=True)
        self._rows.append(dict(zip(self._columns, map(str, cells), strict=True)))
        keep(self._run, self._rows, self._provenance, self._folder)


def add(file: Path, run: str, what: str, folder: Path = FOLDER) -> None:
    """Keep the CSV of a result that has provenance.json beside it.

    With a metrics.json of ``drone-kd compare`` beside it, the teacher becomes the first row.

    Args:
        file: the CSV, e.g. compare.csv of ``drone-kd compare``.
        run: its new path below the folder, without suffix; one of that name is replaced.
        what: was measured.
        folder: benchmarks/.

    Raises:
        ValueError: no such files.
    """
    found = read_json(file.with_name(FILE))
    if not isinstance(found, dict):
        raise ValueError(f"{file.with_name(FILE)}: expected a provenance; run the command again")
    rows = read_rows(file)
    metrics = file.with_name("metrics.json")
    content = read_json(metrics) if metrics.is_file() else None
    if isinstance(content, dict) and isinstance(content.get(TEACHER), dict):
        figures = {k: v for k, v in content[TEACHER].items() if v is not None}
        teacher = {column: str(figures.get(column, "")) for column in rows[0]}
        rows.insert(0, {**teacher, "arm": TEACHER})
    keep(run, rows, {"what": what, **found}, folder)


def keep(run: str, rows: Sequence[Row], known: Mapping[str, object], folder: Path) -> None:
    """Write a CSV and its row of runs.csv, sorted by name; arguments as of `Result`."""
    target = folder / f"{run}.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, as_csv(rows))
    fields = {column: str(known.get(column, "")) for column in FIELDS}
    unknown = " ".join(column for column, value in fields.items() if not value)
    new = {"run": run, "what": str(known["what"]), **fields, "unknown": unknown, "notes": ""}
    before = read_rows(folder / RUNS) if (folder / RUNS).is_file() else []
    others = [row for row in before if row["run"] != run]
    ordered = sorted([*others, new], key=lambda row: row["run"])
    write_text(folder / RUNS, as_csv(ordered))


def read_text(path: Path) -> str:
    """Return the text of a page or CSV file; ValueError if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name}: expected UTF-8, got {one_line(error.reason)} at byte {error.start}; "
            "save it as UTF-8"
        ) from error


def read_rows(path: Path, columns: Iterable[str] = ()) -> list[Row]:
    """Return the rows of a CSV file.

    Args:
        path: of the file.
        columns: that it must have, among others.

    Raises:
        ValueError: it has no rows, one of another length, no such column, or is no CSV in UTF-8.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except csv.Error as error:
        raise ValueError(
            f"{path.name}: expected CSV, got {one_line(error)}; correct it"
        ) from error
    if not rows or any(None in row or None in row.values() for row in rows):
        raise ValueError(
            f"{path.name}: expected a header and rows as long as it, got others or none; "
            "correct it"
        )
    expect_columns(path.name, rows[0], columns)
    return rows


def expect_columns(name: str, row: Row, columns: Iterable[str]) -> None:
    """Raise ValueError if a row of a CSV file lacks one of these columns."""
    for column in columns:
        if column not in row:
            known = one_line(", ".join(row), 200)
            raise ValueError(f"{name}: expected a column {column!r}, got {known}; add it")


def gaps(folder: Path) -> Iterator[str]:
    """Yield what is missing in runs.csv, one line each; ``folder``: benchmarks/."""
    rows = read_rows(folder / RUNS, ("run", "unknown", *FIELDS))
    runs = [row["run"] for row in rows]
    files = {str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.csv")}
    files -= {Path(RUNS).stem, Path(CITED).stem}
    for name in sorted(files - {*runs}):
        yield f"benchmarks/{name}.csv: expected a row in {RUNS}, got none: add its provenance"
    for number, row in enumerate(rows, start=2):
        line = f"benchmarks/{RUNS}:{number}"
        if row["run"] not in files or runs.count(row["run"]) > 1:
            yield f"{line}: expected one row per CSV file, got {row['run']!r}: correct it"
        empty = {column for column in FIELDS if not row[column]}
        if named := empty ^ {*row["unknown"].split()}:
            listed = ", ".join(sorted(named))
            yield f"{line}: {listed}: expected a value, or its name under unknown: add one"
