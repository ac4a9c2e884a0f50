# SPDX-License-Identifier: AGPL-3.0-or-later
"""The stages of mining, as functions over batches of frames: in this process or on a cluster.

    read -> thin -> look (both models)     per batch, in any order, on any machine
    summarise                              per segment: neighbours, scenes, the best of each scene
    pick                                   over all segments (mining/selection.py)
    read -> label (the teacher)            per chosen frame

Whatever runs them, and however often it is stopped, the result is the same.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from drone_kd.core.detections import Detections
from drone_kd_training.mining.flights import Frame, Segment, read
from drone_kd_training.mining.frame_features import Glance, thin
from drone_kd_training.mining.hardness import disagreement, flicker

if TYPE_CHECKING:  # readers on a cluster need no torch
    from drone_kd_training.mining.student_and_teacher import Models

# Frames that are in memory at a time, per reader and per pair of models.
BATCH = 8
# A scene ends where a frame is this far from the scene's first one; see `look.embed`.
SCENE_DISTANCE = 0.06
REASONS = ("disagreement", "uncertainty", "random")
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class Seen:
    """A frame that was looked at, without its pixels."""

    index: int
    stamp_s: float
    block: int
    size: tuple[int, int]
    embedding: np.ndarray
    shift: tuple[float, float] | None
    student: Detections
    disagreement: float


class Labelled(NamedTuple):
    """A chosen frame: its number in the segment, JPEG bytes, (width, height), and the answers."""

    index: int
    jpeg: bytes
    size: tuple[int, int]
    answers: Detections


def glances(segment: Segment, said: Counter) -> Iterator[list[Glance]]:
    """Read and thin a segment: batches of frames. `said` counts what went wrong."""
    return batches(thin(read(segment, lambda error: said.update([str(error)]))))


def chosen(segment: Segment, wanted: set[int]) -> Iterator[list[Frame]]:
    """Read the chosen frames of a segment once more: batches."""
    return batches(read(segment, lambda error: None, wanted))


def look(batch: list[Glance], models: Models) -> list[Seen]:
    """Let student and teacher look at frames."""
    found = []
    for frame, embedding, shift in batch:
        height, width = frame.image.shape[:2]
        student = models.student(frame.image)
        gap = disagreement(models.glance(frame.image), student)
        found.append(
            Seen(
                frame.index,
                frame.stamp_s,
                frame.block,
                (width, height),
                embedding,
                shift,
                student,
                gap,
            )
        )
    return found


def label(batch: list[Frame], models: Models) -> list[Labelled]:
    """Let the teacher label frames."""
    found = []
    for frame in batch:
        height, width = frame.image.shape[:2]
        _, jpeg = cv2.imencode(".jpg", frame.image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        answers = models.label(frame.image)
        found.append(Labelled(frame.index, jpeg.tobytes(), (width, height), answers))
    return found


def summarise(segment: Segment, seen: list[Seen], said: Counter, per_scene: int) -> dict[str, Any]:
    """What is kept of a segment: of each of its scenes the best frames, by each reason.

    Returns:
        JSON: "said", "frames" (how many were looked at) and "candidates".
    """
    seen = sorted(seen, key=lambda s: s.index)
    candidates: list[dict[str, Any]] = []
    for scene in _scenes(seen):
        rows = [_candidate(segment, seen, i) for i in scene]
        best = {0}  # the first frame stands for the scene
        for reason in REASONS:
            best |= set(sorted(range(len(rows)), key=lambda i: -rows[i][reason])[:per_scene])
        leader = len(candidates)
        candidates += [{**rows[i], "leader": leader} for i in sorted(best)]
    return {"said": dict(said), "frames": len(seen), "candidates": candidates}


def batches(items: Iterable, size: int = BATCH) -> Iterator[list]:
    """`items` in lists of `size`; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _scenes(seen: list[Seen]) -> Iterator[list[int]]:
    scene: list[int] = []
    for i, frame in enumerate(seen):
        if scene:
            first = seen[scene[0]]
            far = np.linalg.norm(frame.embedding - first.embedding) > SCENE_DISTANCE
            if far or frame.block != first.block:
                yield scene
                scene = []
        scene.append(i)
    if scene:
        yield scene


def _candidate(segment: Segment, seen: list[Seen], i: int) -> dict[str, Any]:
    frame = seen[i]
    # How the student's answers change to the frame before and to the one after.
    changes = []
    for a, b in ((i - 1, i), (i, i + 1)):
        if a >= 0 and b < len(seen) and seen[b].shift is not None:
            changes.append(flicker(seen[a].student, seen[b].student, seen[b].shift, seen[b].size))
    name = f"{segment.key}-{frame.index:06d}"
    return {
        "name": name,
        "index": frame.index,
        "stamp_s": frame.stamp_s,
        "block": frame.block,
        "embedding": frame.embedding.tolist(),
        "disagreement": frame.disagreement,
        "uncertainty": float(np.mean(changes)) if changes else 0.0,
        # The same in every run, and on every machine.
        "random": int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48,
    }
