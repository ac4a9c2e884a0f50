# SPDX-License-Identifier: AGPL-3.0-or-later
"""Unlabelled flights (folders and lists of images, videos, bags) as training frames.

The frames are thinned: near duplicates of their predecessor are dropped, and the rest is spread
over the flights. Frames that are larger than a window are cut. The folder that is written:

    NAME.jpg                 frames of videos and bags, and windows of frames
    FLIGHT/                  links to images with labels beside them, which are not read
    NAME.png                 windows of lossless images (BMP, PNG, TIFF): JPEG would add artefacts
                             that the camera does not show to the deployed model
    flight-frames.json       what the frames were made from, and where they are; written last

Image files that are not cut are used where they are.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ultralytics.utils import LOGGER

from drone_kd.files import atomic_folder, write_text
from drone_kd.media.bags import inspect_bag, is_bag
from drone_kd.media.image_files import SourceError, read_image
from drone_kd.parsing import ParseError, read_json
from drone_kd.progress import track
from drone_kd.text import one_line
from drone_kd_training.data.crops import Crops, views
from drone_kd_training.data.dataset import image_paths, label_path
from drone_kd_training.data.folders import empty_folder, write_image
from drone_kd_training.data.names import DataError
from drone_kd_training.data.near_duplicates import NearDuplicates
from drone_kd_training.mining.flights import Segment, local, plan, read
from drone_kd_training.mining.frame_features import nearly_same, thumbnail
from drone_kd_training.mining.remote_flights import safe, shown_flight

MAX_FRAMES = 1000
# A frame is cut if its longer side is more than this many windows.
CUT_ABOVE = 1.25
# Written last: its presence means that the folder is complete.
MARKER = "flight-frames.json"
# Frames that are looked at per frame that is wanted, so that near duplicates can be dropped.
_LOOKED_AT = 3
_JPEG_QUALITY = 95
_LOSSLESS = (".bmp", ".png", ".tif", ".tiff")
_MARKER_BYTES = 400_000_000


class FlightFrame(NamedTuple):
    """A training frame, and the name of the flight that it is from."""

    path: Path
    flight: str


class _Key(NamedTuple):
    """Place of a frame in its flight: index of the segment (0 for images) and number in it."""

    segment: int
    number: int


class _Frame(NamedTuple):
    """A decoded frame: its place, how messages name it, BGR uint8 pixels (h, w, 3)."""

    key: _Key
    shown: str
    image: np.ndarray


@dataclass
class _Flight:
    """A flight of one camera.

    Attributes:
        name: safe in a file name, unique.
        shown: how messages name it.
        images: its files; () for a video or bag, which has segments.
        count: number of frames; 0: unknown.
        sizes: (width, height) of the frames to use, by place.
        reason: why the first unreadable frame could not be read.
        missing: how many of the frames that were looked at could not be read.
    """

    name: str
    shown: str
    images: tuple[Path, ...] = ()
    segments: tuple[Segment, ...] = ()
    count: int = 0
    sizes: dict[_Key, tuple[int, int]] = field(default_factory=dict)
    reason: str = ""
    missing: int = 0

    def frames(self, wanted: Mapping[int, Container[int]]) -> Iterator[_Frame]:
        """Yield the frames with the wanted numbers by segment; count those that are unreadable."""
        if self.images:
            for number in range(len(self.images)):
                if number in wanted[0] and (image := self._read(number)) is not None:
                    yield _Frame(_Key(0, number), one_line(self.images[number]), image)
        for index, segment in enumerate(self.segments):
            if index in wanted:
                for number, stamp_s, _, image in read(segment, self._note, wanted[index]):
                    shown = f"{self.shown} at {stamp_s:.2f} s"
                    yield _Frame(_Key(index, number), shown, image)

    def evenly(self, frames: int) -> dict[int, Container[int]]:
        """Return the numbers by segment of at least ``frames`` evenly spread frames, if it has."""
        step = max(1, self.count // max(1, frames))
        return {i: range(0, sys.maxsize, step) for i in range(max(1, len(self.segments)))}

    def frame_name(self, key: _Key) -> str:
        """Return a name of a frame that begins with the flight's, safe in a file name."""
        return f"{self.name}-{key.segment:05d}-{key.number:06d}"

    def _read(self, number: int) -> np.ndarray | None:
        try:
            return read_image(self.images[number])
        except SourceError as error:
            self._note(error)
            return None

    def _note(self, error: SourceError) -> None:
        self.missing += 1
        self.reason = self.reason or one_line(error)


def write_flight_frames(
    flights: Sequence[str],
    folder: Path,
    tile: int,
    max_frames: int = MAX_FRAMES,
    val: Iterable[Path] = (),
) -> list[FlightFrame]:
    """Return training frames of unlabelled flights; those that are no usable files are written.

    A complete folder of the same arguments and files is left as it is; another one is replaced.
    One frame is in memory at a time.

    Args:
        flights: folders of images (searched recursively; each folder counts as a flight), lists
            of images (.txt, as `image_paths` reads them), videos, bags; paths or URLs, see
            `mining.remote_flights`. Labels beside images are not read.
        folder: where frames are written.
        tile: side in pixels of the windows that larger frames are cut into; 0: whole frames.
        max_frames: maximum number of frames, before they are cut: equally many of each flight, as
            far as it has them, evenly spread over it.
        val: validation images.

    Raises:
        DataError: no frame can be read, or a frame is a near duplicate of a validation image.
        SourceError: a flight does not exist, has no images or cannot be opened.
        ValueError: ``tile`` or ``max_frames`` is out of range.
        OSError: a file cannot be written.
    """
    crops = Crops(tile) if tile else None
    if max_frames < 1:
        raise ValueError(f"expected at least 1 frame of the flights, got {max_frames}")
    val, folder = list(val), folder.absolute()
    found = _open(flights)
    made_from = _fingerprint(found, val, tile, max_frames)
    if (frames := _finished(folder, made_from)) is not None:
        LOGGER.info(f"Unlabelled frames are ready: {len(frames)} in {one_line(folder)}")
        return frames
    _choose(found, max_frames, NearDuplicates(val))
    empty_folder(folder)
    with atomic_folder(folder) as new:
        rows = [row for flight in found for row in _write(flight, new, crops)]
        write_text(new / MARKER, json.dumps({"made_from": made_from, "frames": rows}))
    _report(found, rows, tile, max_frames)
    return [FlightFrame(folder / path, flight) for path, flight in rows]


def _open(flights: Sequence[str]) -> list[_Flight]:
    """Return the flights, one per camera and per folder of images; nothing is decoded."""
    found: list[_Flight] = []
    recordings: list[str] = []
    known: set[Path] = set()
    for flight in dict.fromkeys(flights):
        path = local(flight)
        if path.suffix.lower() != ".txt" and (is_bag(path) or not path.is_dir()):
            recordings.append(flight)
            continue
        by_folder: dict[Path, list[Path]] = {}
        for image in image_paths(path.resolve()):
            if image not in known:
                known.add(image)
                by_folder.setdefault(image.parent, []).append(image)
        for parent, images in by_folder.items():
            digest = hashlib.sha256(str(parent).encode()).hexdigest()[:8]
            name = f"{safe(parent.name) or 'flight'}-{digest}"
            found.append(_Flight(name, one_line(parent), tuple(images), count=len(images)))
    by_camera: dict[tuple[str, str], list[Segment]] = {}
    for segment in plan(recordings, [], lambda error: LOGGER.warning(one_line(error, 400))):
        by_camera.setdefault((segment.name, segment.topic), []).append(segment)
    for (name, topic), segments in by_camera.items():
        name = "-".join(filter(None, (name, safe(topic))))
        shown = " ".join(filter(None, (shown_flight(segments[0].flight), one_line(topic))))
        count = _messages(segments[0]) if topic else segments[-1].stop
        found.append(_Flight(name, shown, segments=tuple(segments), count=count))
    if not found:
        raise DataError(
            "expected a flight: a folder or list of images, a video or a bag; found none"
        )
    return found


def _messages(segment: Segment) -> int:
    """Return how many images a segment's bag has on its topic."""
    files = inspect_bag(local(segment.flight), lambda error: None)
    return sum(t.messages for file in files for t in file.topics if t.name == segment.topic)


def _choose(flights: list[_Flight], max_frames: int, val: NearDuplicates) -> None:
    """Set the frames to use of each flight; DataError if none, or one is a validation image."""
    twins: list[tuple[_Flight, str, Path]] = []
    shares = _shares([flight.count for flight in flights], max_frames)
    for flight, share in zip(flights, shares, strict=True):
        wanted = flight.evenly(_LOOKED_AT * share)
        last = None
        looked_at = 0
        for key, shown, image in track(
            flight.frames(wanted), f"Choose frames of {flight.shown}", "frame"
        ):
            looked_at += 1
            small = thumbnail(image)
            if last is not None and nearly_same(last, small):
                continue
            last = small
            flight.sizes[key] = image.shape[1], image.shape[0]
            if (twin := val.find(image)) is not None:
                twins.append((flight, shown, twin))
        _warn_of_missing(flight, wanted, looked_at)
    if twins:
        flight, shown, twin = twins[0]
        count = sum(other is flight for other, _, _ in twins)
        raise DataError(
            f"{flight.shown}: {count} of {len(flight.sizes)} frames are near duplicates of "
            f"validation images, such as {shown} of {one_line(twin)}; remove this flight from the "
            "unlabelled ones"
        )
    if not any(flight.sizes for flight in flights):
        reason = next((f.reason for f in flights if f.reason), "all flights are empty")
        raise DataError(f"expected a readable frame in some flight, found none: {reason}")
    shares = _shares([len(flight.sizes) for flight in flights], max_frames)
    for flight, share in zip(flights, shares, strict=True):
        keys = list(flight.sizes)
        flight.sizes = {
            key: flight.sizes[key] for key in (keys[i * len(keys) // share] for i in range(share))
        }


def _shares(counts: list[int], most: int) -> list[int]:
    """Return how many frames to use of each flight: equally many, as far as each has them."""
    shares = [0] * len(counts)
    for rank, i in enumerate(sorted(range(len(counts)), key=lambda i: counts[i])):
        shares[i] = min(counts[i], (most - sum(shares)) // (len(counts) - rank))
    return shares


def _warn_of_missing(flight: _Flight, wanted: dict[int, Container[int]], read_frames: int) -> None:
    """Warn once of the frames of a flight that were looked at and could not be read."""
    if not flight.images and not flight.segments[0].topic:  # a cut-off video just ends
        lengths = [segment.stop - segment.start for segment in flight.segments]
        expected = sum(n in wanted[i] for i, length in enumerate(lengths) for n in range(length))
        flight.missing = max(flight.missing, expected - read_frames)
    if flight.missing:
        LOGGER.warning(
            f"{flight.shown}: {flight.missing} of {flight.missing + read_frames} frames cannot be "
            f"read, the others are used: {flight.reason or 'cut off or damaged'}"
        )


def _write(flight: _Flight, folder: Path, crops: Crops | None) -> list[tuple[str, str]]:
    """Write the frames of a flight; return (path, name of the flight), in order.

    The path of what is written is relative to the folder.
    """
    paths: dict[_Key, list[str]] = {}
    decoded: dict[int, set[int]] = {}
    for key, size in flight.sizes.items():
        paths[key] = []
        if flight.images and not _is_cut(size, crops):
            paths[key].append(_linked(flight, key, folder))
        else:
            decoded.setdefault(key.segment, set()).add(key.number)
    total = sum(map(len, decoded.values()))
    frames = flight.frames(decoded) if decoded else ()
    for key, _, image in track(frames, f"Write frames of {flight.shown}", "frame", total):
        lossless = flight.images and flight.images[key.number].suffix.lower() in _LOSSLESS
        size = image.shape[1], image.shape[0]
        for end, window, _ in views(image, crops if _is_cut(size, crops) else None):
            name = f"{flight.frame_name(key)}{end.removesuffix('.jpg')}"
            target = folder / f"{name}{'.png' if lossless else '.jpg'}"
            quality = None if lossless else _JPEG_QUALITY
            write_image(target, image if window is None else window, quality)
            paths[key].append(target.name)
    return [(path, flight.name) for listed in paths.values() for path in listed]


def _linked(flight: _Flight, key: _Key, folder: Path) -> str:
    """Return the path of an image file, or of a link to it that has no labels beside it.

    The link keeps the file's name, by which stored predictions know the image.
    """
    path = flight.images[key.number]
    if not label_path(path).is_file():
        return str(path)
    link = folder / flight.name / path.name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(path)
    return str(link.relative_to(folder))


def _is_cut(size: tuple[int, int], crops: Crops | None) -> bool:
    return crops is not None and max(size) > CUT_ABOVE * crops.size


def _fingerprint(flights: list[_Flight], val: list[Path], tile: int, max_frames: int) -> str:
    """Return a hash of the arguments and of all files; images by path, size and time."""

    def state(path: Path) -> tuple[str, int, int]:
        try:
            status = path.stat()
        except OSError:
            return str(path), 0, 0
        return str(path), status.st_size, status.st_mtime_ns

    sources = [
        (flight.name, flight.count, [state(p) for p in flight.images]) for flight in flights
    ]
    content = [tile, max_frames, sources, [state(path) for path in val]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _finished(folder: Path, made_from: str) -> list[FlightFrame] | None:
    """Return the frames of a complete folder with this fingerprint, else None."""
    try:
        content = read_json(folder / MARKER, _MARKER_BYTES)
        rows = content["frames"] if content["made_from"] == made_from else []
        frames = [FlightFrame(folder / path, str(flight)) for path, flight in rows]
    except (ParseError, KeyError, TypeError, ValueError):
        return None
    return frames if frames and all(frame.path.is_file() for frame in frames) else None


def _report(
    flights: list[_Flight], rows: list[tuple[str, str]], tile: int, max_frames: int
) -> None:
    frames = sum(len(flight.sizes) for flight in flights)
    total = sum(flight.count for flight in flights)
    windows = f", {len(rows)} images of up to {tile} px" if tile else ""
    limit = f", at most {max_frames}" if frames >= max_frames else ""
    LOGGER.info(
        f"Unlabelled: {frames} of {total} frames{limit}, of {len(flights)} flights{windows}"
    )
    chosen = [f.images[key.number] for f in flights if f.images for key in f.sizes]
    if labelled := sum(label_path(path).is_file() for path in chosen):
        LOGGER.info(f"Unlabelled: labels beside {labelled} of the frames are ignored")
