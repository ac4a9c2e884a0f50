# SPDX-License-Identifier: AGPL-3.0-or-later
"""Flights and stretches of frames: the blocks that the guard's bootstrap draws.

Neighbouring frames show the same objects, so they are no independent evidence (Davison and
Hinkley, "Bootstrap Methods and their Application", 1997, chapter 8). Flight and time of a frame
are read from its name, ``PREFIX NUMBER [TILE]``:

- The last number is the frame's, the text before it names the flight. A tile mark (``_t``,
  ``_q0``) is ignored.
- `drone-kd mine` names a frame after flight, camera, segment and number. A segment is a stretch,
  whatever the camera.
- Prefixes that differ only in their numbers may share one counter, as in HIT-UAV
  (``night_altitude_pitch_weather_number``): they are one sequence, see `_sequences`.
- A jump of more than ten usual steps in the numbers starts another flight.
- A name without a number, or with a prefix that no other frame has, tells nothing: all such frames
  count as one stretch.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from drone_kd_training.retraining.bootstrap import effective_blocks

# Frames of a stretch, at most. In HIT-UAV's flights the differences between two models are
# independent after about as many.
STRETCH = 20
_JUMP = 10
# With a shared counter at least so many frames follow each other under one prefix.
_CHANGES = 4
_NAME = re.compile(r"(.*?)(\d{1,18})(?:[_-][A-Za-z]\d{0,2})?", re.ASCII)
_MINED = re.compile(r"(.*-[0-9a-f]{8})-(?:.*-)?(\d{5})-\d{6}", re.ASCII)

# A frame's number in its flight, and its index.
_Run = list[tuple[int, int]]


class Blocks(NamedTuple):
    """Block of each frame, int64 (F,), numbered from 0; ``unit``: "flight" or "stretch"."""

    of_frame: np.ndarray
    unit: str


def frame_blocks(paths: Sequence[Path], least: float, objects: np.ndarray | None = None) -> Blocks:
    """Return the block of each frame: its flight if ``least`` flights count, or its stretch.

    A long flight is cut into stretches of up to `STRETCH` neighbouring frames. What stretches show
    is true of these flights; it takes flights to speak for others. ``objects``: int64 (F,), by
    which flights count, see `effective_blocks` (default: one in each frame).
    """
    names: list[tuple[str, ...]] = [()] * len(paths)  # flight, stretch; () tells nothing
    prefixes: defaultdict[str, _Run] = defaultdict(list)
    for index, path in enumerate(paths):
        if mined := _MINED.fullmatch(path.stem):
            names[index] = mined.groups()
        elif name := _NAME.fullmatch(path.stem):
            prefixes[name[1]].append((int(name[2]), index))
    for flight, run in enumerate(_flights(prefixes)):
        parts = np.array_split([index for _, index in run], -(-len(run) // STRETCH))
        for stretch, part in enumerate(parts):
            for index in part.tolist():
                names[index] = (str(flight), str(stretch))
    counts = np.ones(len(paths), np.int64) if objects is None else objects
    flights = _numbered([name[:1] for name in names])
    if len(paths) and effective_blocks(flights, counts) >= least:
        return Blocks(flights, "flight")
    return Blocks(_numbered(names), "stretch")


def _numbered(names: Sequence[tuple[str, ...]]) -> np.ndarray:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], np.int64)


def _flights(prefixes: dict[str, _Run]) -> list[_Run]:
    """Return the frames by flight, in order; frames that tell nothing are left out."""
    families: defaultdict[str, list[_Run]] = defaultdict(list)
    for prefix, run in prefixes.items():
        families[re.sub(r"\d+", "0", prefix)].append(sorted(run))
    sequences = [sequence for runs in families.values() for sequence in _sequences(runs)]
    return [flight for sequence in sequences if len(sequence) > 1 for flight in _cut(sequence)]


def _sequences(runs: list[_Run]) -> list[_Run]:
    """Return one sequence if the runs of several prefixes share a counter.

    Then no number is twice, and most frames follow one of their own prefix.
    """
    frames = sorted((*frame, prefix) for prefix, run in enumerate(runs) for frame in run)
    numbers = {(number, prefix) for number, _, prefix in frames}
    changes = sum(a[2] != b[2] for a, b in pairwise(frames))
    if len({number for number, _ in numbers}) < len(numbers) or _CHANGES * changes > len(frames):
        return runs
    return [[(number, index) for number, index, _ in frames]]


def _cut(sequence: _Run) -> list[_Run]:
    steps = np.diff([number for number, _ in sequence])
    usual = np.median(steps[steps > 0]) if steps.any() else 1
    starts = [0, *(np.flatnonzero(steps > _JUMP * usual) + 1).tolist(), len(sequence)]
    return [sequence[a:b] for a, b in pairwise(starts)]
