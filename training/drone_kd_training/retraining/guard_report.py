# SPDX-License-Identifier: AGPL-3.0-or-later
"""Outcome and table of the guard's comparisons, as text and for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from drone_kd_training.retraining.guard import (
    ANCESTOR,
    FEW,
    FEW_FLIGHTS,
    LABELS,
    NEW,
    NOT_SHOWN,
    WORSE,
    Row,
    accepted,
)
from drone_kd_training.retraining.guard_margins import MIN_BLOCKS, MIN_OBJECTS
from drone_kd_training.retraining.stretches import frame_blocks
from drone_kd_training.tables import format_score

# Outcomes of the guard; the third is FEW_FLIGHTS.
ACCEPTED, REFUSED = "accepted", "refused"
_PLURAL = {"flight": "flights", "stretch": "stretches"}


def outcome(rows: list[Row]) -> tuple[str, str]:
    """Return ACCEPTED, REFUSED or FEW_FLIGHTS, and one line on why or what to do."""
    if accepted(rows):
        by_teacher = any(row.teacher and row.domain == NEW for row in rows)
        text = "a higher agreement with the teacher" if by_teacher else "a gain"
        return ACCEPTED, f"{text} on the new flight, no loss on the base"
    if worse := [row for row in rows if row.verdict == WORSE]:
        return REFUSED, f"worse than allowed: {_listed(worse)}"
    few = [row for row in rows if row.verdict == FEW_FLIGHTS]
    few = few or [row for row in rows if row.verdict == FEW and row.part == "all"]
    if few:
        return FEW_FLIGHTS, _missing(min(few, key=lambda row: (row.part != "all", row.blocks)))
    return REFUSED, _unshown([row for row in rows if row.verdict == NOT_SHOWN])


def too_few_frames(domain: str, paths: Sequence[Path]) -> str:
    """Return one line if no candidate can be accepted by these frames, or ""."""
    blocks = frame_blocks(paths, MIN_BLOCKS)
    number = int(blocks.of_frame.max(initial=-1)) + 1
    if number >= MIN_BLOCKS:
        return ""
    return (
        f"{domain}: expected {MIN_BLOCKS} flights or stretches to judge a candidate by, got "
        f"{number} ({len(paths)} frames), so none can be accepted: {_remedy(domain)}"
    )


def _remedy(domain: str, of_part: str = "") -> str:
    if domain == NEW:
        return f"record and mine more flights{of_part}"
    return f"label frames of more flights{of_part} for the base's validation split"


def _listed(rows: list[Row]) -> str:
    return ", ".join(f"{row.domain} {row.part}" for row in rows)


def _missing(row: Row) -> str:
    """Return what to record or label so that a row can be judged."""
    lacks = f"{row.objects} objects of {MIN_OBJECTS}"
    if row.verdict == FEW_FLIGHTS:
        lacks = f"{row.blocks:.1f} effective {_PLURAL[row.unit]} of {MIN_BLOCKS}"
    of_part = "" if row.part in ("all", LABELS) else f" with {row.part} objects"
    return f"{row.domain} {row.part} has {lacks}: {_remedy(row.domain, of_part)}"


def _unshown(rows: list[Row]) -> str:
    """Return how many blocks would show a gain as large as the measured one."""
    if not rows:
        return "the new flight or the base was not judged"
    row = max(rows, key=_needed)
    text, needed = f"not shown: {_listed(rows)}", _needed(row)
    if np.isfinite(needed):
        text += f"; about {needed:.0f} {_PLURAL[row.unit]} would show {row.domain} {row.part}"
    return text


def _needed(row: Row) -> float:
    room = row.after - row.before - row.least
    return np.ceil(row.blocks * ((row.high - row.low) / 2 / room) ** 2) if room > 0 else np.inf


def as_table(rows: list[Row]) -> str:
    """Return the comparisons as text, mAP50-95 in points, one line each."""
    header = (
        f"{'mAP50-95':<22}{'objects':>8}{'blocks':>8}{'before':>8}{'after':>8}{'gain':>7}"
        f"{'95 %':>16}{'must be':>9}"
    )
    lines = [header]
    for domain in dict.fromkeys(row.domain for row in rows if row.part != LABELS):
        own = [row for row in rows if row.domain == domain and row.part != LABELS]
        lines += [_title(own[0]), *map(_line, own)]
    return "\n".join([*lines, *(_labels_line(row) for row in rows if row.part == LABELS)])


def _title(row: Row) -> str:
    """Return what the figures of a domain are."""
    figure = "agreement with the teacher, not accuracy" if row.teacher else "accuracy"
    since = ", compared with the first model of the lineage" if row.domain == ANCESTOR else ""
    block = "stretch of these flights alone" if row.unit == "stretch" else "flight"
    return f"{row.domain}: {figure}{since}; a block is a {block}"


def _labels_line(row: Row) -> str:
    return (
        f"labels agree with {100 * row.after:.0f} % of the deployed model's {row.objects} "
        f"confident boxes in new frames (base: {100 * row.before:.0f} %; must be at least "
        f"{100 * row.least:.0f} %)  {row.verdict}"
    )


def _line(row: Row) -> str:
    figures = [None if np.isnan(x) else x for x in (row.before, row.after)]
    line = f"{row.domain + ' ' + row.part:<22}{row.objects:>8}{row.blocks:>8.1f}"
    line += "".join(f"{format_score(x):>8}" for x in figures)
    if row.verdict in (FEW, FEW_FLIGHTS):
        return f"{line}{'':>32}  {row.verdict}"
    shown = f"[{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
    line += f"{100 * (row.after - row.before):>+7.1f}{shown:>16}"
    return f"{line}{f'> {100 * row.least:+.1f}':>9}  {row.verdict}"


def as_dicts(rows: list[Row]) -> list[dict]:
    """Return the comparisons for JSON, with None in place of NaN."""
    return [
        {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in asdict(row).items()}
        for row in rows
    ]
