# SPDX-License-Identifier: AGPL-3.0-or-later
"""Provenance of an experiment: of each process that ran a part of it, from its start on."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from drone_kd.files import write_text
from drone_kd.parsing import read_json
from drone_kd.provenance import FILE, provenance
from drone_kd.text import one_line
from drone_kd_training.distillation.claims import claim

# What separates the values of several processes.
_NEXT = "; "
_LOAD = re.compile(r", load average [\d.]+")


def record_process(
    output: Path, seeds: Sequence[int], classes: Sequence[str], image_sizes: str
) -> None:
    """Add this process to provenance.json of an experiment, before it starts a run.

    Where processes differ, e.g. in commit or machine, the file names all values. ``seeds``: of
    this process; the file has those of all. Other arguments are those of `provenance`.

    Raises:
        ValueError: the file has something else.
    """
    path = output / FILE
    with claim(output / "locks" / "provenance", wait=True):
        before = read_json(path) if path.is_file() else {}
        if not isinstance(before, dict) or not all(isinstance(v, str) for v in before.values()):
            raise ValueError(f"{one_line(path)}: expected a provenance, got others; delete it")
        own = provenance(_numbers(before.get("seeds", ""), seeds), " ".join(classes), image_sizes)
        merged = {
            key: value if key == "seeds" else _joined(before.get(key, ""), value)
            for key, value in own.items()
        }
        write_text(path, json.dumps(merged, indent=1))


def _numbers(before: str, seeds: Sequence[int]) -> str:
    """Return all seeds in order; those of a file that are no numbers come first."""
    known = dict.fromkeys([*before.split(), *map(str, seeds)])
    return " ".join(sorted(known, key=lambda seed: int(seed) if seed.isdecimal() else -1))


def _joined(before: str, value: str) -> str:
    if not before:
        return value
    # A value may contain the separator; the load of the machine differs each time.
    known, own = (f"{_NEXT}{_LOAD.sub('', text)}{_NEXT}" for text in (before, value))
    return before if own in known else f"{before}{_NEXT}{value}"
