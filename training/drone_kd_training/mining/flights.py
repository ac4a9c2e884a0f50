# SPDX-License-Identifier: AGPL-3.0-or-later
"""Flights: bags, videos and folders of pictures, cut into segments that are read one by one.

A segment is what one machine reads at a time, and what is done again after a kill. It covers
whole time blocks, so that no result depends on how a flight was cut.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import fsspec
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

# A flight has about ten time blocks, of which some are held out; longer flights have more, since a
# block is no longer than this, and short flights fewer: of shorter blocks most frames would have
# neighbours on the other side.
BLOCKS = 10
LONGEST_NS, SHORTEST_NS = 30 * 10**9, 2 * 10**9
LONGEST_FRAMES, SHORTEST_FRAMES = 300, 5
# How much of each end of a file is looked at to know it again.
_FINGERPRINT_BYTES = 1 << 20


@dataclass(frozen=True)
class Segment:
    """A part of a flight.

    Attributes:
        flight: path or URL, as it was given.
        name: of the flight: safe in a file name, the same wherever a copy of it lies.
        topic: of the camera; empty for videos and pictures.
        number: of the segment within the flight and topic.
        file: of the bag, relative to the flight ("" for the flight itself).
        start, stop: nanoseconds in a bag, else numbers of frames.
        origin, block: a frame at `t` is in the time block (t - origin) // block.
        broken: a file of a bag that was cut off.
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
        """Names the segment, safe in a file name."""
        return "-".join(filter(None, (self.name, safe(self.topic), f"{self.number:05d}")))


class Frame(NamedTuple):
    """One picture of a segment: its number there, stamp, time block, and uint8 BGR pixels."""

    index: int
    stamp_s: float
    block: int
    image: np.ndarray


def safe(text: str) -> str:
    """`text` as a part of a file name: letters, digits, "_" and "-" alone."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")[:60]


def plan(
    flights: list[str], topics: list[str], on_error: Callable[[SourceError], None]
) -> list[Segment]:
    """Cut flights into segments.

    Args:
        flights: paths or fsspec URLs; the same flight twice counts once.
        topics: of the bags; empty: all that hold images.
        on_error: told what is wrong, where something can be used all the same.

    Raises:
        SourceError: a flight that cannot be used at all.
    """
    segments: list[Segment] = []
    known: dict[str, str] = {}
    for flight in flights:
        path = local(flight)
        print_ = fingerprint(path)
        if print_ in known:
            on_error(SourceError(f"{flight}: the same flight as {known[print_]}, used once"))
            continue
        known[print_] = flight
        name = f"{safe(path.stem) or 'flight'}-{print_}"
        if is_bag(path):
            segments += _plan_bag(flight, path, name, topics, on_error)
        else:
            segments += _plan_frames(flight, name, _count(path))
    return segments


def read(
    segment: Segment, on_error: Callable[[SourceError], None], wanted: set[int] | None = None
) -> Iterator[Frame]:
    """Yield the frames of a segment.

    Args:
        on_error: told of what cannot be read; the rest follows.
        wanted: numbers of the frames that are decoded at all (default: all).
    """
    path = local(segment.flight)
    if segment.topic:
        yield from _read_bag(segment, path, on_error, wanted)
    elif path.is_dir():
        pictures = _pictures(path)[segment.start : segment.stop]
        for i, picture in enumerate(pictures):
            if wanted is not None and i not in wanted:
                continue
            try:
                yield _numbered(segment, i, float(segment.start + i), read_image(picture))
            except SourceError as error:
                on_error(error)
    else:
        yield from _read_video(segment, path, wanted)


def local(flight: str) -> Path:
    """The path of a flight on this machine: of a URL, its copy in a cache.

    Raises:
        SourceError: there is no such flight.
    """
    if "://" not in flight:
        if not Path(flight).exists():
            raise SourceError(f"{flight}: no such bag, video or folder")
        return Path(flight)
    digest = hashlib.sha256(flight.encode()).hexdigest()[:16]
    name = flight.rstrip("/").rpartition("/")[2]
    cache = Path(tempfile.gettempdir()) / f"drone_kd-flights-{os.getuid()}" / digest
    if not (cache / name).exists():
        temporary = cache.with_name(f"{digest}.{os.getpid()}.tmp")
        try:
            files, root = fsspec.core.url_to_fs(flight)
            temporary.mkdir(parents=True, mode=0o700)
            files.get(root, str(temporary / name), recursive=files.isdir(root))
            if not cache.exists():
                os.replace(temporary, cache)
        except (OSError, ValueError, ImportError) as error:
            raise SourceError(f"{flight}: cannot be fetched ({error})") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return cache / name


def fingerprint(path: Path) -> str:
    """Eight hex digits of a flight's content: of names, sizes and both ends of every file."""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        size = file.stat().st_size
        name = file.relative_to(path) if path.is_dir() else ""
        digest.update(f"{name} {size}\n".encode())
        with open(file, "rb") as content:
            digest.update(content.read(_FINGERPRINT_BYTES))
            content.seek(max(0, size - _FINGERPRINT_BYTES))
            digest.update(content.read())
    return digest.hexdigest()[:8]


def _plan_bag(
    flight: str,
    path: Path,
    name: str,
    topics: list[str],
    on_error: Callable[[SourceError], None],
) -> list[Segment]:
    files = inspect_bag(path, on_error)
    cameras = {t.name for f in files for t in f.topics if t.msgtype in (IMAGE, COMPRESSED)}
    everything = sorted({f"{t.name} ({t.msgtype})" for f in files for t in f.topics})
    if not cameras:
        raise SourceError(f"{flight}: no images in it; its topics: {', '.join(everything)}")
    if missing := sorted(set(topics) - cameras):
        raise SourceError(
            f"{flight}: no images on {', '.join(missing)}; there are some on "
            f"{', '.join(sorted(cameras))}"
        )
    start, stop = min(f.start_ns for f in files), max(f.stop_ns for f in files)
    block = min(LONGEST_NS, max(SHORTEST_NS, -(-(stop - start) // BLOCKS)))
    segments = []
    for topic in sorted(set(topics) or cameras):
        parts = []
        for file in (f for f in files if any(t.name == topic for t in f.topics)):
            inside = "" if file.path == path else str(file.path.relative_to(path))
            edges = [file.start_ns, file.stop_ns]
            if file.indexed:
                first = start + ((file.start_ns - start) // block + 1) * block
                edges[1:1] = range(first, file.stop_ns, block)
            parts += [(inside, a, b, file.broken) for a, b in zip(edges, edges[1:], strict=False)]
        segments += [
            Segment(flight, name, topic, number, inside, a, b, start, block, broken)
            for number, (inside, a, b, broken) in enumerate(parts)
        ]
    return segments


def _plan_frames(flight: str, name: str, count: int) -> list[Segment]:
    block = min(LONGEST_FRAMES, max(SHORTEST_FRAMES, -(-count // BLOCKS)))
    return [
        Segment(flight, name, "", number, "", first, min(first + block, count), 0, block)
        for number, first in enumerate(range(0, count, block))
    ]


def _count(path: Path) -> int:
    """The number of frames of a folder of pictures or a video."""
    if path.is_dir():
        if pictures := _pictures(path):
            return len(pictures)
        raise SourceError(f"{path}: an empty flight: neither a bag nor pictures in it")
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise SourceError(
            f"{path}: expected a bag, a folder of pictures or a video "
            f"({', '.join(VIDEO_SUFFIXES)})"
        )
    capture = cv2.VideoCapture(str(path))
    try:
        # What the container says; where it says nothing, one segment up to the end.
        readable = capture.grab()
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    finally:
        capture.release()
    if not readable:
        raise SourceError(f"{path}: not a video that OpenCV can read (damaged?)")
    return max(count, 1)


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)


def _numbered(segment: Segment, index: int, stamp_s: float, image: np.ndarray) -> Frame:
    return Frame(index, stamp_s, (segment.start + index) // segment.block, image)


def _read_bag(
    segment: Segment,
    path: Path,
    on_error: Callable[[SourceError], None],
    wanted: set[int] | None,
) -> Iterator[Frame]:
    file = BagFile(path / segment.file, (), segment.start, segment.stop, broken=segment.broken)
    messages = read_messages(file, {segment.topic}, on_error, segment.start, segment.stop)
    for index, message in enumerate(messages):
        if wanted is not None and index not in wanted:
            continue
        try:
            image, stamp_ns = message_to_bgr(message)
        except SourceError as error:
            on_error(SourceError(f"{segment.flight}: {error}"))
            continue
        block = (message.logged_ns - segment.origin) // segment.block
        yield Frame(index, stamp_ns / 1e9, block, image)


def _read_video(segment: Segment, path: Path, wanted: set[int] | None) -> Iterator[Frame]:
    capture = cv2.VideoCapture(str(path))
    try:
        rate = capture.get(cv2.CAP_PROP_FPS) or 1.0
        capture.set(cv2.CAP_PROP_POS_FRAMES, segment.start)
        if int(capture.get(cv2.CAP_PROP_POS_FRAMES)) != segment.start:  # cannot seek
            capture.release()
            capture = cv2.VideoCapture(str(path))
            for _ in range(segment.start):
                capture.grab()
        for index in range(segment.stop - segment.start):
            if not capture.grab():
                return
            if wanted is None or index in wanted:
                read, image = capture.retrieve()
                if read:
                    stamp_s = (segment.start + index) / rate
                    yield _numbered(segment, index, stamp_s, image)
    finally:
        capture.release()
