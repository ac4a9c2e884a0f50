# SPDX-License-Identifier: AGPL-3.0-or-later
"""Text tables of scores and models, and rows as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any


def format_score(score: float | None) -> str:
    """Return an AP in [0, 1] as points with one decimal ("31.4"); "-" for None."""
    return "-" if score is None else f"{100 * score:.1f}"


def format_table(rows: dict[str, dict]) -> str:
    """Return one line per model; ``rows``: name -> merged results of `evaluate` and `cost`."""
    lines = [f"{'':<16}{'mAP50-95':>10}{'mAP50':>8}{'AP tiny':>9}{'parameters':>12}{'GFLOPs':>8}"]
    for name, row in rows.items():
        all_, half, tiny = (format_score(row[key]) for key in ("map50_95", "map50", "ap_tiny"))
        scores = f"{all_:>10}{half:>8}{tiny:>9}"
        lines.append(f"{name:<16}{scores}{row['parameters']:>12,}{row['gflops']:>8.2f}")
    return "\n".join(lines)


def format_columns(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return rows of cells below a header, in columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return "\n".join(
        row[0].ljust(widths[0])
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in (header, *rows)
    )


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as CSV text, one line per run."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
