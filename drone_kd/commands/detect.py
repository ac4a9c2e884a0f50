"""drone-kd detect: detections in images, a video or a live stream."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drone_kd.backends.golden import read_golden, require_golden
from drone_kd.backends.model_file import read_model_file
from drone_kd.commands.follow import Follower, clock_of
from drone_kd.commands.shared_options import (
    add_model,
    add_runtime,
    check_folder,
    count,
    fraction,
    show_progress,
)
from drone_kd.core.detections import Detections
from drone_kd.core.postprocess import InferenceError
from drone_kd.core.thresholds import parse_thresholds
from drone_kd.core.tiling import parse_tiling
from drone_kd.detector import Detector, load_detector
from drone_kd.files import write_text
from drone_kd.media.compressed_images import EncodedError, encode
from drone_kd.media.image_files import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    SourceError,
    read_frames,
)
from drone_kd.media.live_streams import StreamError, is_live, read_live
from drone_kd.paths import default_model_path, parameter_defaults
from drone_kd.progress import Progress, print_line
from drone_kd.text import one_line
from drone_kd.tracking import Tracks
from drone_kd.visualization import draw_detections, draw_trails

# A path alone may have 4,096 characters.
_MAX_LINE = 5000


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options; their defaults are those of the node."""
    defaults = parameter_defaults("detector.yaml")
    add_model(parser)
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="image, folder, video, URL (rtsp, http, udp), camera number such as 0, or "
        "/dev/video0; a live source runs until Ctrl-C",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="file for the boxes")
    parser.add_argument("--save", type=Path, metavar="DIR", help="folder for images with boxes")
    text = "follow the objects of a video or live source: ids in --json, ids and trails in --save"
    parser.add_argument("--track", action="store_true", help=text)
    parser.add_argument("--frames", type=count, metavar="N", help="stop after N frames")
    settings = parser.add_argument_group("detector settings, as of the node")
    settings.add_argument(
        "--confidence",
        type=_confidence,
        default=str(defaults["confidence"]),
        metavar="C",
        help="threshold of the scores, 0 to 1; also per class: car=0.4,person=0.3, or with one "
        "for the others: 0.25,car=0.4",
    )
    text = "class names to report, joined by commas (default: all)"
    settings.add_argument("--classes", type=_names, default=(), metavar="NAMES", help=text)
    text = "boxes of one class that overlap more are one object (dense heads only)"
    settings.add_argument("--iou", type=fraction, default=defaults["iou"], help=text)
    limit, text = defaults["max_detections"], "per image, best first"
    settings.add_argument("--max-detections", type=count, default=limit, metavar="N", help=text)
    tiling, text = defaults["tiling"], "off, auto or ROWSxCOLUMNS: large images in tiles"
    settings.add_argument("--tiling", type=_tiling, default=tiling, metavar="T", help=text)
    text = "refuse images of this size or larger, 1 to 1000 (above 256 set "
    text += "OPENCV_IO_MAX_IMAGE_PIXELS, too)"
    megapixels = defaults["max_megapixels"]
    settings.add_argument(
        "--max-megapixels", type=_megapixels, default=megapixels, metavar="M", help=text
    )
    add_runtime(settings)


def run(arguments: argparse.Namespace) -> int:
    """Detect, print a line per frame, and write what was asked for."""
    _check(arguments)
    threshold, per_class = arguments.confidence
    file = read_model_file(arguments.model or default_model_path())
    detector = load_detector(
        file,
        confidence=threshold,
        class_confidence=per_class,
        only=arguments.classes,
        iou=arguments.iou,
        max_detections=arguments.max_detections,
        tiling=arguments.tiling,
        runtime=arguments.runtime,
        progress=show_progress,
    )
    require_golden(detector.backend, read_golden(file.metadata, detector.backend.spec))
    if arguments.save is not None:
        try:
            arguments.save.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            shown = one_line(arguments.save)
            raise SourceError(f"--save {shown}: expected a folder, got a file") from None
    follow = Follower(clock_of(arguments.source)) if arguments.track else None
    work = _Work(detector, arguments.json, arguments.save, follow)
    live = is_live(arguments.source)
    pixels = round(arguments.max_megapixels * 1e6)
    source = arguments.source
    frames = read_live(source) if live else _read(source, work.fail, pixels)
    try:
        work.detect(islice(frames, arguments.frames))
    except (KeyboardInterrupt, StreamError):
        if live:  # the usual end of a live source: what was found counts
            work.write()
        raise
    work.write()
    if work.failed:
        show_progress(f"{work.failed} of {work.failed + work.done} images failed")
    return 1 if work.failed else 0


def _read(
    source: str, fail: Callable[[Exception], None], max_pixels: int
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield the frames as `read_frames` does; a refusal for their size names the option."""

    def named(error: SourceError) -> SourceError:
        text = str(error)
        larger = "megapixels" in text and "OPENCV" not in text
        return SourceError(f"{text}; --max-megapixels allows more") if larger else error

    try:
        yield from read_frames(source, lambda error: fail(named(error)), max_pixels)
    except SourceError as error:
        raise named(error) from None


class _Work:
    """Detects frame by frame and counts those `done` and those that `failed`.

    The detections go to the file `output` at the end, images with boxes to `folder`.
    """

    def __init__(
        self,
        detector: Detector,
        output: Path | None,
        folder: Path | None,
        follow: Follower | None,
    ) -> None:
        self.done = self.failed = 0
        self._detector, self._output, self._folder = detector, output, folder
        self._follow = follow
        self._records: list[dict[str, object]] = []

    def fail(self, error: Exception) -> None:
        """Report a frame without detections."""
        self.failed += 1
        show_progress(one_line(error, _MAX_LINE))

    def detect(self, frames: Iterator[tuple[str, NDArray[np.uint8]]]) -> None:
        """Detect in every frame; print a line for each and save it if there is a folder."""
        classes = self._detector.backend.spec.classes
        with Progress("Detect", unit="image", summary=False) as progress:
            for name, image in frames:
                try:
                    detections = self._detector(image)
                except InferenceError as error:
                    self.fail(InferenceError(f"{name}: {error}"))
                    continue
                self.done += 1
                tracks = None if self._follow is None else self._follow(image, detections)
                detections = detections if tracks is None else tracks.detections
                print_line(one_line(f"{name}: {_summary(detections, classes)}", _MAX_LINE))
                if self._output is not None:
                    found = _as_json(detections, classes)
                    if tracks is not None:
                        found = [
                            {"id": i, **box}
                            for i, box in zip(tracks.ids.tolist(), found, strict=True)
                        ]
                    self._records.append({"image": name, "detections": found})
                if self._folder is not None:
                    _save(self._folder, name, self._drawn(image, detections, tracks))
                progress.update()

    def _drawn(
        self, image: NDArray[np.uint8], detections: Detections, tracks: Tracks | None
    ) -> NDArray[np.uint8]:
        classes = self._detector.backend.spec.classes
        if tracks is None or self._follow is None:
            return draw_detections(image, detections, classes)
        drawn = draw_detections(image, detections, classes, tracks.ids.tolist())
        draw_trails(drawn, self._follow.trails, detections.class_ids)
        return drawn

    def write(self) -> None:
        """Write the detections of all frames, if there is a file for them."""
        if self._output is not None:
            write_text(self._output, f"{json.dumps(self._records, indent=1)}\n")


def _check(arguments: argparse.Namespace) -> None:
    """Check before the work what can be checked."""
    if arguments.model is None and arguments.source.endswith(".onnx"):
        raise SourceError(f"{arguments.source} is a model: name an image, folder or video too")
    if arguments.json is not None:
        check_folder("--json", arguments.json)
        inputs = {Path(path).resolve() for path in (arguments.source, arguments.model) if path}
        image = arguments.json.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES
        if arguments.json.resolve() in inputs or (image and arguments.json.exists()):
            raise SourceError(f"--json {arguments.json}: would overwrite an input")
    if arguments.save is not None and not is_live(arguments.source):
        source = Path(arguments.source)
        if arguments.save.resolve() == (source if source.is_dir() else source.parent).resolve():
            raise SourceError(f"--save {arguments.save}: would overwrite the source")


def _confidence(text: str) -> tuple[float | None, dict[str, float]]:
    """Read "0.3", "car=0.4,person=0.3" or both: a threshold for all classes, and per class."""
    parts = text.split(",")
    common = [fraction(part) for part in parts if "=" not in part]
    if len(common) > 1:
        raise argparse.ArgumentTypeError(f"expected one threshold for all classes, got {text!r}")
    try:
        per_class = parse_thresholds(part for part in parts if "=" in part)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return (common[0] if common else None), per_class


def _megapixels(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 1000, got {text!r}")
    return value


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _tiling(text: str) -> str:
    try:
        parse_tiling(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _as_json(detections: Detections, classes: tuple[str, ...]) -> list[dict[str, object]]:
    columns = (detections.class_ids, detections.scores, detections.xyxy)
    return [
        {"class": classes[class_id], "score": score, "xyxy": xyxy}
        for class_id, score, xyxy in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _summary(detections: Detections, classes: tuple[str, ...]) -> str:
    counts = np.bincount(detections.class_ids, minlength=len(classes))
    found = [f"{count} {name}" for name, count in zip(classes, counts, strict=True) if count]
    return ", ".join(found) or "nothing found"


def _save(folder: Path, name: str, image: NDArray[np.uint8]) -> None:
    target = folder / Path(name).name
    if target.suffix.lower() not in IMAGE_SUFFIXES:  # "clip.mp4#12"
        target = target.with_name(f"{target.name.replace('#', '_')}.jpg")
    try:
        content = encode(image, target.suffix)
    except EncodedError as error:
        raise OSError(f"{target}: cannot be written: {error}") from None
    # A new file: what a link of that name points to is left alone.
    target.unlink(missing_ok=True)
    with target.open("xb") as file:
        file.write(content)
