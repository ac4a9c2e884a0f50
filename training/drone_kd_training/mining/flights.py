# SPDX-License-Identifier: AGPL-3.0-or-later
"""Flights (bags, videos, folders of images), split into segments that are read independently.

A segment is the unit of work: one process reads it, and an interrupted run repeats it. It covers
whole time blocks, so that no result depends on how a flight was split.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from drone_kd.media.bags import (
    COMPRESSED,
    IMAGE,
    BagFile,
    inspect_bag,
    is_bag,
    message_to_bgr,
    read_messages,
)
from drone_kd.media.image_files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, SourceError, read_image
from drone_kd.media.videos import check_frame_size, open_video
from drone_kd.parsing import ParseError, open_regular
from drone_kd.text import one_line
from drone_kd_training.mining.remote_flights import fetch, is_url, safe, shown_flight

# A flight has about ten time blocks, and some of them are held out. The limits of a block's length
# give long flights more blocks and short flights fewer: in shorter blocks most frames would have
# neighbours in another split.
BLOCKS = 10
_DAY_NS = 86_400 * 10**9
LONGEST_NS, SHORTEST_NS = 30 * 10**9, 2 * 10**9
LONGEST_FRAMES, SHORTEST_FRAMES = 300, 5
# Of a flight: with more, times or counts of frames are wrong, and blocks get longer instead.
MAX_BLOCKS = 10_000
# A fingerprint covers this much of each end of a file.
_FINGERPRINT_BYTES = 1 << 20


@dataclass(frozen=True)
class Segment:
    """A part of a flight.

    Attributes:
        flight: path or URL, as given.
        name: of the flight: safe in a file name, equal for all copies of it.
        topic: of the camera; empty for videos and images.
        number: of the segment within the flight and topic.
        file: of the bag, relative to the flight ("" for the flight itself).
        start, stop: first and last time in nanoseconds (bags), or frame numbers without the last.
        origin: of the time blocks, in the unit of `start`.
        block: length of a time block; a frame at `t` is in block (t - origin) // block.
        broken: whether the bag's file is truncated.
    """

    flight: str
    name: str
    topic: str
    number: int
    file: str
    start: int
    stop: int
    origin: int
    block: int
    broken: bool = False

    @property
    def key(self) -> str:
        """Unique name of the segment, safe in a file name."""
        return "-".join(filter(None, (self.name, safe(self.topic), f"{self.number:05d}")))


OnError = Callable[[SourceError], None]


class Frame(NamedTuple):
    """A frame of a segment: number in it, stamp, time block, BGR uint8 pixels (h, w, 3)."""

    number: int
    stamp_s: float
    block: int
    image: np.ndarray


def plan(flights: list[str], topics: list[str], on_error: OnError) -> list[Segment]:
    """Split flights into segments.

    ``flights``: paths or fsspec URLs; a flight given twice counts once. ``topics``: of the bags;
    empty: all with images. ``on_error`` gets each defect that leaves something usable. Raises
    SourceError if a flight cannot be used at all.
    """
    segments: list[Segment] = []
    known: dict[str, str] = {}
    for flight in flights:
        path = local(flight)
        digest = fingerprint(path)
        if digest in known:
            first = shown_flight(known[digest])
            on_error(SourceError(f"{shown_flight(flight)}: the same flight as {first}, used once"))
            continue
        known[digest] = flight
        name = f"{safe(path.stem) or 'flight'}-{digest}"
        if is_bag(path):
            segments += _plan_bag(flight, path, name, topics, on_error)
        else:
            segments += _plan_frames(flight, name, _count(path))
    return segments


def read(
    segment: Segment, on_error: OnError, wanted: Container[int] | None = None
) -> Iterator[Frame]:
    """Yield the frames of a segment; ``wanted``: numbers of the frames to decode (default: all).

    ``on_error`` gets each frame that cannot be read; the others follow.
    """
    path = local(segment.flight)
    if segment.topic:
        yield from _read_bag(segment, path, on_error, wanted)
    elif path.is_dir():
        for i, file in enumerate(_image_files(path)[segment.start : segment.stop]):
            try:
                if wanted is None or i in wanted:
                    yield _numbered(segment, i, float(segment.start + i), read_image(file))
            except SourceError as error:
                on_error(error)
    else:
        yield from _read_video(segment, path, on_error, wanted)


def local(flight: str) -> Path:
    """Return the path of a flight on this machine; a URL is downloaded into a cache, once.

    Raises SourceError if there is no such flight, or it cannot be fetched.
    """
    if is_url(flight):
        return fetch(flight)
    if not os.path.exists(flight):  # noqa: PTH110  Path.exists() raises for names that are too long
        raise SourceError(f"{one_line(flight)}: no such bag, video or folder")
    return Path(flight)


def fingerprint(path: Path) -> str:
    """Return 8 hex digits that identify a flight: names, sizes and both ends of its files.

    Raises SourceError if a file cannot be read, or the flight is neither a file nor a folder.
    """
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        update_with_file(digest, file, str(file.relative_to(path)) if path.is_dir() else "")
    return digest.hexdigest()[:8]


def update_with_file(digest: hashlib._Hash, file: Path, name: str = "") -> None:
    """Add name, size and both ends of a file to a digest; SourceError: it cannot be read."""
    try:
        with open_regular(file) as content:
            size = os.fstat(content.fileno()).st_size
            digest.update(os.fsencode(f"{name} {size}\n"))
            digest.update(content.read(_FINGERPRINT_BYTES))
            content.seek(max(0, size - _FINGERPRINT_BYTES))
            digest.update(content.read(_FINGERPRINT_BYTES))
    except (ParseError, OSError) as error:
        raise SourceError(one_line(error)) from None


def _plan_bag(
    flight: str, path: Path, name: str, topics: list[str], on_error: OnError
) -> list[Segment]:
    files, shown = inspect_bag(path, on_error), shown_flight(flight)
    cameras = {t.name for f in files for t in f.topics if t.msgtype in (IMAGE, COMPRESSED)}
    everything = sorted({f"{t.name} ({t.msgtype})" for f in files for t in f.topics})
    if not cameras:
        listed = one_line(", ".join(everything))
        raise SourceError(f"{shown}: no images in it; its topics: {listed}")
    if missing := sorted(set(topics) - cameras):
        raise SourceError(
            f"{shown}: no images on {one_line(', '.join(missing))}; there are some on "
            f"{one_line(', '.join(sorted(cameras)))}"
        )
    start, stop = min(f.start_ns for f in files), max(f.stop_ns for f in files)
    block = min(LONGEST_NS, max(SHORTEST_NS, -(-(stop - start) // BLOCKS)))
    if (stop - start) // block > MAX_BLOCKS:
        block = (stop - start) // MAX_BLOCKS
        days = (stop - start) / _DAY_NS
        on_error(SourceError(f"{shown}: its clock jumped: it lasts {days:.0f} days by its stamps"))
    segments = []
    for topic in sorted(set(topics) or cameras):
        parts = []
        for file in (f for f in files if any(t.name == topic for t in f.topics)):
            inside = "" if file.path == path else str(file.path.relative_to(path))
            edges = [file.start_ns, file.stop_ns]
            if file.indexed:
                first = start + ((file.start_ns - start) // block + 1) * block
                edges[1:1] = range(first, file.stop_ns, block)
            parts += [(inside, a, b, file.broken) for a, b in pairwise(edges)]
        for number, (inside, a, b, broken) in enumerate(parts):
            part = Segment(flight, name, topic, number, inside, a, b, start, block, broken)
            segments.append(part)
    return segments


def _plan_frames(flight: str, name: str, count: int) -> list[Segment]:
    block = min(LONGEST_FRAMES, max(SHORTEST_FRAMES, -(-count // BLOCKS)))
    block = max(block, count // MAX_BLOCKS)
    return [
        Segment(flight, name, "", number, "", first, min(first + block, count), 0, block)
        for number, first in enumerate(range(0, count, block))
    ]


def _count(path: Path) -> int:
    """Return the number of frames of a folder of images or a video."""
    if path.is_dir():
        if files := _image_files(path):
            return len(files)
        raise SourceError(f"{one_line(path)}: expected a bag or images in it, found neither")
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise SourceError(
            f"{one_line(path)}: expected a bag, a folder of images or a video "
            f"({', '.join(VIDEO_SUFFIXES)})"
        )
    capture = open_video(path)
    try:
        # Without a frame count in the container, one segment covers everything.
        readable = capture.grab()
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    finally:
        capture.release()
    if not readable:
        raise SourceError(f"{one_line(path)}: OpenCV cannot read it as a video (damaged?)")
    return max(count, 1)


def _image_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)


def _numbered(segment: Segment, number: int, stamp_s: float, image: np.ndarray) -> Frame:
    return Frame(number, stamp_s, (segment.start + number) // segment.block, image)


def _read_bag(
    segment: Segment, path: Path, on_error: OnError, wanted: Container[int] | None
) -> Iterator[Frame]:
    file = BagFile(path / segment.file, (), segment.start, segment.stop, broken=segment.broken)
    messages = read_messages(file, {segment.topic}, on_error, segment.start, segment.stop)
    for number, message in enumerate(messages):
        if wanted is not None and number not in wanted:
            continue
        try:
            image, stamp_ns = message_to_bgr(message)
        except SourceError as error:
            on_error(SourceError(f"{shown_flight(segment.flight)}: {error}"))
            continue
        block = (message.logged_ns - segment.origin) // segment.block
        yield Frame(number, stamp_ns / 1e9, block, image)


def _read_video(
    segment: Segment, path: Path, on_error: OnError, wanted: Container[int] | None
) -> Iterator[Frame]:
    capture = open_video(path)
    try:
        rate = capture.get(cv2.CAP_PROP_FPS)
        rate = rate if 0 < rate < math.inf else 1.0
        capture.set(cv2.CAP_PROP_POS_FRAMES, segment.start)
        if int(capture.get(cv2.CAP_PROP_POS_FRAMES)) != segment.start:  # cannot seek
            capture.release()
            capture = open_video(path)
            if not all(capture.grab() for _ in range(segment.start)):
                return
        for number in range(segment.stop - segment.start):
            if not capture.grab():
                return
            if wanted is None or number in wanted:
                decoded, image = capture.retrieve()
                if decoded:
                    # The size may change within a video.
                    check_frame_size(image.shape[1], image.shape[0], one_line(path))
                    yield _numbered(segment, number, (segment.start + number) / rate, image)
    except SourceError as error:
        on_error(error)
    finally:
        capture.release()
