# SPDX-License-Identifier: AGPL-3.0-or-later
"""The stages of mining, as functions on batches of frames: in this process or on a cluster.

    read -> drop near duplicates -> score (both models)    per batch, in any order, anywhere
    summarise                              per segment: neighbours, scenes, the best of each scene
    pick                                   over all segments (mining/selection.py)
    read -> label (the teacher)            per chosen frame

The result is the same wherever the stages run and however often they are interrupted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from drone_kd.core.detections import Detections
from drone_kd.media.image_files import SourceError
from drone_kd.text import one_line
from drone_kd_training.mining.flights import Frame, Segment, read
from drone_kd_training.mining.frame_features import FrameFeatures, drop_near_duplicates
from drone_kd_training.mining.hardness import disagreement
from drone_kd_training.mining.reasons import REASONS, ScoredFrame, measure

if TYPE_CHECKING:  # readers on a cluster need no torch
    from drone_kd_training.mining.student_and_teacher import Models

# Frames in memory at a time, per reader and per pair of models.
BATCH = 8
# A scene ends at a frame whose embedding is this far from that of the scene's first frame.
SCENE_DISTANCE = 0.06
_JPEG_QUALITY = 95
# Different ones, of a segment.
_MAX_PROBLEMS = 50


class LabelledFrame(NamedTuple):
    """A chosen frame: number in the segment, JPEG, (width, height), the teacher's predictions."""

    number: int
    jpeg: bytes
    size: tuple[int, int]
    predictions: Detections


# What a worker yields: a segment with its scored frames and problems, or some labelled frames.
Scored = tuple[Segment, list[ScoredFrame], Counter[str]]
Labelled = tuple[Segment, list[LabelledFrame]]


def read_features(segment: Segment, problems: Counter[str]) -> Iterator[list[FrameFeatures]]:
    """Yield a segment's frames without near duplicates, in batches; count `problems`."""

    def count(error: SourceError) -> None:
        line = one_line(error, 400)
        full = line not in problems and len(problems) >= _MAX_PROBLEMS
        problems["other problems" if full else line] += 1

    frames = read(segment, count)
    return batches(drop_near_duplicates(frames))


def read_chosen(segment: Segment, wanted: set[int]) -> Iterator[list[Frame]]:
    """Yield the frames of a segment with the `wanted` numbers, in batches."""
    return batches(read(segment, lambda error: None, wanted))


def score(batch: list[FrameFeatures], models: Models) -> list[ScoredFrame]:
    """Run student and teacher on frames."""
    found = []
    for (number, stamp_s, block, image), embedding, shift in batch:
        size = (image.shape[1], image.shape[0])
        student = models.student(image)
        gap = disagreement(models.predict(image), student)
        found.append(ScoredFrame(number, stamp_s, block, size, embedding, shift, student, gap))
    return found


def label(batch: list[Frame], models: Models) -> list[LabelledFrame]:
    """Let the teacher label frames."""
    found = []
    for number, _, _, image in batch:
        size = (image.shape[1], image.shape[0])
        jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()
        found.append(LabelledFrame(number, jpeg, size, models.label(image)))
    return found


def summarise(
    segment: Segment, scored: list[ScoredFrame], problems: Counter[str], per_scene: int
) -> dict[str, Any]:
    """Reduce a segment to candidates: the best frames of each scene, by each reason.

    Returns JSON: "said" (the problems), "frames" (how many were scored) and "candidates".
    """
    scored = sorted(scored, key=lambda s: s.number)
    candidates: list[dict[str, Any]] = []
    for scene in _scenes(scored):
        rows = [_candidate(segment, scored, i) for i in scene]
        best = {0}  # the first frame represents the scene
        for reason in (name for name, reason in REASONS.items() if reason.in_segment):
            best.update(sorted(range(len(rows)), key=lambda i: -rows[i][reason])[:per_scene])
        leader = len(candidates)
        candidates += [{**rows[i], "leader": leader} for i in sorted(best)]
    return {"said": dict(problems), "frames": len(scored), "candidates": candidates}


def frame_name(segment: Segment, number: int) -> str:
    """Return the name of a frame, safe in a file name."""
    return f"{segment.key}-{number:06d}"


def batches(items: Iterable, size: int = BATCH) -> Iterator[list]:
    """Yield lists of `size` items; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _scenes(scored: list[ScoredFrame]) -> Iterator[list[int]]:
    scene: list[int] = []
    for i, frame in enumerate(scored):
        if scene:
            first = scored[scene[0]]
            far = np.linalg.norm(frame.embedding - first.embedding) > SCENE_DISTANCE
            if far or frame.block != first.block:
                yield scene
                scene = []
        scene.append(i)
    if scene:
        yield scene


def _candidate(segment: Segment, scored: list[ScoredFrame], i: int) -> dict[str, Any]:
    frame = scored[i]
    name = frame_name(segment, frame.number)
    return {
        "name": name,
        "index": frame.number,
        "stamp_s": frame.stamp_s,
        "block": frame.block,
        "embedding": frame.embedding.tolist(),
        **measure(scored, i, name),
    }
