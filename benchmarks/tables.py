# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tables in Markdown from CSV files: one line per group of rows, cells by templates.

A cell is a format string over the columns of the CSV. ``{map50_95}`` is the value as it stands in
the file, the same in all rows that have one; ``{map50_95:mean}`` summarises the rows of the line.
Formats, scores in points:

==============  ==============================================================================
``points``      100 times the mean, "10.8"
``mean``        the same ± standard deviation, "10.8 ± 1.1"
``each``        every row, "10.8, 9.9"
``gain ARM``    mean difference to ARM, paired, with its 95 % interval, "+2.0 [-1.3, +5.3]"
``holm ARM``    its p value, paired t-test, corrected over the arms of the table (Holm), "0.16"
``lead ARM``    the mean difference the other way round, ARM minus this
``gains ARM``   the differences, "+2.7, +2.9, +0.5"
``share ARM``   mean gain by the mean gap between ARM and the teacher, with its interval by
                Fieller, "18 % [9, 27]"; empty for a gap below `arm_figures.MIN_GAP`
``minus ARM``   mean difference to ARM, not in points, "-0.35"
``ratio ARM``   median ratio to ARM, paired, "1.73"
``of ARM``      mean in percent of that of ARM, "94 %"
``times ARM``   mean by that of ARM, paired, with its interval by Fieller, "1.08 [0.85, 1.42]"
``signed``      mean with its sign, "+2.0"
``signs``       every row, "+1.7, +2.1"
``range``       least to greatest, "0.4 to 5.2"
``n``           number of values, "3"
``units``       number of seeds or subsets (the first column of `Table.pair`) with a value, "3"
``true``        number of rows that say True, "2 of 3"
``.1f`` ...     the mean in a format of Python
==============  ==============================================================================

``{map50_95[ARM]:points}`` takes only the rows of the line with that arm (several columns in
`Table.keys`: their values, joined by spaces). Intervals: see
`drone_kd_training.distillation.paired_comparison.interval`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from benchmarks.runs import TEACHER, Row, expect_columns, read_rows
from drone_kd.text import one_line
from drone_kd_training.distillation.arm_figures import MIN_GAP, ratio_interval
from drone_kd_training.distillation.comparison_text import limits, signed
from drone_kd_training.distillation.paired_comparison import holm, interval, p_value


@dataclass(frozen=True)
class Table:
    """A table of a results page.

    Attributes:
        csv: path below benchmarks/ without ".csv".
        columns: header -> template of the cells. Empty: the CSV as it is.
        where: column -> values; other rows are left out.
        by: columns whose values make a line. Empty: each row is one.
        keys: columns that ``[...]`` and ARM of the templates refer to.
        pair: columns that pair the rows of two arms.
        within: columns of one experiment; ARM is looked for in rows with the same values.
        differences: name of a new column -> the two whose difference it is.
        names: value of a column -> how it is printed.
    """

    csv: str
    columns: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    by: tuple[str, ...] = ()
    keys: tuple[str, ...] = ("arm",)
    pair: tuple[str, ...] = ("seed",)
    within: tuple[str, ...] = ()
    differences: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)


def cells(table: Table, folder: Path) -> list[list[str]]:
    """Return the lines of a table, the first of which is the header.

    Args:
        table: what to print.
        folder: benchmarks/.

    Raises:
        ValueError: the template does not fit the CSV.
    """
    rows = read_rows(folder / f"{table.csv}.csv")
    if not table.columns:
        return [list(rows[0]), *(list(row.values()) for row in rows)]
    compared = [column for pair in table.differences.values() for column in pair]
    named = (*table.where, *table.by, *table.within, *compared)
    expect_columns(f"{table.csv}.csv", rows[0], named)
    rows = [row for row in rows if all(row[key] in table.where[key] for key in table.where)]
    for row in rows:
        for name, (after, before) in table.differences.items():
            row[name] = str(_number(table, row, after) - _number(table, row, before))
    lines: dict[tuple[str, ...], list[Row]] = {}
    for number, row in enumerate(rows):
        key = tuple(row[column] for column in table.by) or (str(number),)
        lines.setdefault(key, []).append(row)
    templates = table.columns.values()
    found = [[t.format_map(_Line(table, own, rows)) for t in templates] for own in lines.values()]
    return [list(table.columns), *found]


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a table as lines of Markdown; ``lines``: from `cells`."""
    safe = [[cell.replace("|", "\\|") for cell in cells] for cells in lines]
    safe.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in safe)


@dataclass(frozen=True)
class _Values:
    """Values of one column in some rows.

    ``others``: rows among which those of another arm are found.
    """

    table: Table
    column: str
    rows: Sequence[Row]
    others: Sequence[Row]

    def __getitem__(self, key: str) -> _Values:
        return replace(self, rows=self._of(key, self.rows), others=self.rows)

    def __format__(self, spec: str) -> str:
        kind, _, other = spec.partition(" ")
        if not spec:
            return self._same()
        if kind == "true":
            return f"{sum(row[self.column] == 'True' for row in self.rows)} of {len(self.rows)}"
        if not self.numbers or (kind in _PAIRED and not self.pairs(other)):
            return ""  # not measured, or nothing to compare with
        return _FORMATS[kind](self, other) if kind in _FORMATS else format(self.average, spec)

    @property
    def numbers(self) -> list[float]:
        return [_number(self.table, row, self.column) for row in self.rows if row[self.column]]

    @property
    def average(self) -> float:
        return float(np.mean(self.numbers)) + 0.0  # no -0

    def pairs(self, arm: str) -> list[tuple[float, float]]:
        """Return the values beside those of another arm, by seeds that both have."""
        rows = self._of(arm, self.others)
        if rows == self.rows:
            return []  # the arm itself
        expect_columns(f"{self.table.csv}.csv", self.rows[0], self.table.pair)
        own, other = self._by_unit(self.rows), self._by_unit(rows)
        return [(own[unit], other[unit]) for unit in own if unit in other]

    def _by_unit(self, rows: Sequence[Row]) -> dict[tuple[str, ...], float]:
        """Return the mean by seed or subset: runs of one unit are not independent."""
        values: dict[tuple[str, ...], list[float]] = {}
        for row in rows:
            if row[self.column]:
                unit = tuple(row[column] for column in self.table.pair)
                values.setdefault(unit, []).append(_number(self.table, row, self.column))
        return {unit: float(np.mean(found)) for unit, found in values.items()}

    def of_arm(self, arm: str) -> float:
        rows = self._of(arm, self.others)
        if not rows:
            raise ValueError(f"{self.table.csv}: expected rows of {arm!r}, got none")
        return replace(self, rows=rows).average

    def _of(self, key: str, rows: Sequence[Row]) -> list[Row]:
        return [row for row in rows if self.key(row) == key]

    def key(self, row: Row) -> str:
        expect_columns(f"{self.table.csv}.csv", row, self.table.keys)
        return " ".join(row[column] for column in self.table.keys)

    def _same(self) -> str:
        values = list(dict.fromkeys(row[self.column] for row in self.rows if row[self.column]))
        if len(values) > 1:
            raise ValueError(f"{self.table.csv}, {self.column}: expected one value, got {values}")
        return self.table.names.get(values[0], values[0]) if values else ""


class _Line(dict[str, object]):
    """What the templates of a line may name: its columns."""

    def __init__(self, table: Table, rows: Sequence[Row], others: Sequence[Row]) -> None:
        own = {column: rows[0][column] for column in table.within}
        others = [row for row in others if own.items() <= row.items()]
        super().__init__({name: _Values(table, name, rows, others) for name in rows[0]})
        self._csv = table.csv

    def __missing__(self, column: str) -> object:
        known = ", ".join(self)
        raise ValueError(f"{self._csv}: expected a column {column!r}, got {known}; add it")


def _number(table: Table, row: Row, column: str) -> float:
    """Return a value; ValueError if it is no finite number."""
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        text = one_line(row[column])
        raise ValueError(f"{table.csv}, {column}: expected a number, got {text!r}; correct it")
    return value


def _divide(values: _Values, above: float, below: float) -> float:
    if not below:
        at = f"{values.table.csv}, {values.column}"
        raise ValueError(f"{at}: expected a divisor, got 0; leave the row or the ratio out")
    return above / below


def _mean(values: _Values, _: str) -> str:
    spread = f" ± {100 * np.std(values.numbers, ddof=1):.1f}" if len(values.numbers) > 1 else ""
    return f"{100 * values.average:.1f}{spread}"


def _gain(values: _Values, arm: str, sign: int = 1) -> str:
    found = [sign * (own - other) for own, other in values.pairs(arm)]
    known = interval(found)
    return signed(float(np.mean(found))) + (f" {limits(known)}" if known else "")


def _holm(values: _Values, arm: str) -> str:
    """Return the p value of the difference to an arm, corrected over all arms of the table."""
    arms = dict.fromkeys(values.key(row) for row in values.others)
    found = {}
    for other in arms:
        rows = [row for row in values.others if values.key(row) == other]
        pairs = replace(values, rows=rows).pairs(arm)
        p = p_value([a - b for a, b in pairs])
        if p is not None:
            found[other] = p
    corrected = dict(zip(found, holm(list(found.values())), strict=True))
    own = corrected.get(values.key(values.rows[0]))
    return "" if own is None else f"{own:.2f}"


def _share(values: _Values, arm: str) -> str:
    pairs = values.pairs(arm)
    teacher = values.of_arm(TEACHER)
    gains, gaps = [own - other for own, other in pairs], [teacher - other for _, other in pairs]
    if np.mean(gaps) < MIN_GAP:
        return ""
    known = ratio_interval(gains, gaps)
    between = " [{}, {}]".format(*(round(100 * limit) for limit in known)) if known else ""
    return f"{100 * np.mean(gains) / np.mean(gaps):.0f} %{between}"


def _ratio(values: _Values, arm: str) -> str:
    ratios = [_divide(values, own, other) for own, other in values.pairs(arm)]
    return f"{np.median(ratios):.2f}"


def _times(values: _Values, arm: str) -> str:
    own, other = zip(*values.pairs(arm), strict=True)
    ratio = _divide(values, sum(own), sum(other))
    known = ratio_interval(own, other)
    between = f" [{known[0]:.2f}, {known[1]:.2f}]" if known else ""
    return f"{ratio:.2f}{between}"


def _units(values: _Values, _: str) -> str:
    expect_columns(f"{values.table.csv}.csv", values.rows[0], values.table.pair)
    units = {unit[0] for unit in values._by_unit(values.rows)} - {""}  # a teacher has none
    return str(len(units)) if units else ""


def _signed(values: Sequence[float]) -> str:
    return ", ".join(map(signed, values))


_FORMATS: dict[str, Callable[[_Values, str], str]] = {
    "points": lambda values, _: f"{100 * values.average:.1f}",
    "mean": _mean,
    "each": lambda values, _: ", ".join(f"{100 * value:.1f}" for value in values.numbers),
    "gain": _gain,
    "holm": _holm,
    "lead": lambda values, arm: _gain(values, arm, -1),
    "n": lambda values, _: str(len(values.numbers)),
    "units": _units,
    "gains": lambda values, arm: _signed([a - b for a, b in values.pairs(arm)]),
    "share": _share,
    "minus": lambda values, arm: f"{np.mean([a - b for a, b in values.pairs(arm)]):+.2f}",
    "ratio": _ratio,
    "of": lambda values, arm: f"{100 * _divide(values, values.average, values.of_arm(arm)):.0f} %",
    "times": _times,
    "signed": lambda values, _: _signed([values.average]),
    "signs": lambda values, _: _signed(values.numbers),
    "range": lambda values, _: (
        f"{100 * min(values.numbers):.1f} to {100 * max(values.numbers):.1f}"
    ),
}
_PAIRED = ("gain", "holm", "lead", "gains", "share", "minus", "ratio", "times")
