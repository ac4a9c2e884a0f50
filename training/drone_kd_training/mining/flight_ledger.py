# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ledger that keeps each flight on one side for ever: frames to learn from, or frames to judge by.

A flight is known by the content of its files, not by their paths: a bag as a folder and as its
files, or a renamed copy, is the same flight. The ledger is a JSON file, which goes from round to
round.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drone_kd.files import write_text
from drone_kd.media.image_files import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from drone_kd.parsing import ParseError, read_json
from drone_kd.text import one_line
from drone_kd_training.data.names import DataError
from drone_kd_training.mining.flights import local, update_with_file
from drone_kd_training.mining.remote_flights import shown_flight

LEARN, JUDGE = "learn", "judge"
# One of five flights judges, the second one first.
_LEARNING_PER_JUDGING = 4
# Judging flights that the guard needs; with fewer, time blocks of all flights say more than a
# flight or two.
_MIN_JUDGING = 5
_RECORDINGS = {*IMAGE_SUFFIXES, *VIDEO_SUFFIXES, ".mcap", ".db3", ".zstd"}
_FORMAT = 1


def assign_sides(flights: Sequence[str], ledger: Path) -> dict[str, str]:
    """Return the side of each flight, LEARN or JUDGE, and record those that are new.

    ``flights``: paths or URLs. A flight with a file of a known one is on its side; of the new ones
    a fifth judges. Raises DataError if the ledger is no such file or a flight has files of both
    sides, SourceError if a flight cannot be read, OSError if the ledger cannot be written.
    """
    known = _read(ledger)
    side_of = {file: side for side, own in known for file in own}
    sides = {}
    for flight in flights:
        files = _file_hashes(local(flight))
        found = {side_of[file] for file in files if file in side_of}
        if len(found) > 1:
            raise DataError(
                f"{shown_flight(flight)}: expected one flight, got files of flights to learn from "
                f"and to judge by ({one_line(ledger)}): mine them one by one"
            )
        sides[flight] = found.pop() if found else _next_side([side for side, _ in known])
        if new := [file for file in files if file not in side_of]:
            joined = any(file in side_of for file in files)
            side_of |= dict.fromkeys(new, sides[flight])
            known = _with(known, sides[flight], files, joined)
    rows = [{"side": side, "files": files} for side, files in known]
    write_text(ledger, json.dumps({"format": _FORMAT, "flights": rows}, indent=1) + "\n")
    return sides


def split_flights(flights: Sequence[str]) -> dict[str, str]:
    """Return the sides of different flights without a ledger.

    Empty where fewer than five would judge, that is for fewer than 22 flights.
    """
    every = _LEARNING_PER_JUDGING + 1
    sides = {flight: JUDGE if i % every == 1 else LEARN for i, flight in enumerate(flights)}
    return sides if list(sides.values()).count(JUDGE) >= _MIN_JUDGING else {}


def _with(
    known: list[tuple[str, list[str]]], side: str, files: list[str], joined: bool
) -> list[tuple[str, list[str]]]:
    """Return the ledger with a flight, which a known one has joined if they share a file."""
    if not joined:
        return [*known, (side, files)]
    apart = [(s, own) for s, own in known if not {*own} & {*files}]
    together = {file for s, own in known if {*own} & {*files} for file in own}
    return [*apart, (side, sorted(together | {*files}))]


def _next_side(sides: list[str]) -> str:
    judging = sides.count(JUDGE)
    return JUDGE if _LEARNING_PER_JUDGING * judging < len(sides) - judging else LEARN


def _file_hashes(flight: Path) -> list[str]:
    """Return 16 hex digits for each recording of a flight, whatever its name."""
    files = [flight]
    if flight.is_dir():
        every = sorted(path for path in flight.rglob("*") if path.is_file())
        files = [path for path in every if path.suffix.lower() in _RECORDINGS] or every
    hashes = set()
    for file in files:
        digest = hashlib.sha256()
        update_with_file(digest, file)
        hashes.add(digest.hexdigest()[:16])
    return sorted(hashes)


def _read(ledger: Path) -> list[tuple[str, list[str]]]:
    if not ledger.exists():
        return []
    try:
        content: Any = read_json(ledger)
        if content["format"] != _FORMAT:
            raise ValueError
        flights = [(str(row["side"]), [str(file) for file in row["files"]])
                   for row in content["flights"]]  # fmt: skip
    except (ParseError, KeyError, TypeError, ValueError):
        flights = [("", [])]
    if any(side not in (LEARN, JUDGE) for side, _ in flights):
        raise DataError(
            f"{one_line(ledger)}: expected a ledger of flights (--ledger), got something else; "
            "give another file"
        )
    return flights
