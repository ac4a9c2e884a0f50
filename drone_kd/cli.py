"""The command line without ROS: drone-kd detect | bench."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import NoReturn

import cv2
import numpy as np

from drone_kd.core.decode import InferenceError
from drone_kd.core.detections import Detections
from drone_kd.core.spec import ModelError
from drone_kd.detector import StageTimes, load_detector
from drone_kd.draw import draw_detections
from drone_kd.sources import PICTURE_SUFFIXES, SourceError, read_frames, read_picture

_PROGRESS_SECONDS = 2.0
_WARM_UP_FRAMES = 5


def main(argv: list[str] | None = None) -> int:
    """Run drone-kd.

    Returns:
        0: done; 1: done, but some pictures failed; 2: wrong input; 130: interrupted.
    """
    parser, commands = _parsers()
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv and argv[0] in commands:
            # Intermixed, so that options may stand between MODEL.onnx and SOURCE.
            arguments = commands[argv[0]].parse_intermixed_args(argv[1:])
            return arguments.run(arguments)
        parser.parse_args(argv)
        parser.error(f"expected a command: {' or '.join(commands)}")
    except SystemExit as stop:  # argparse has printed its line
        return int(stop.code or 0)
    except (ModelError, SourceError, InferenceError, OSError) as error:
        print(f"drone-kd: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("drone-kd: interrupted", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    """Reports a wrong call in one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"drone-kd: error: {message} (see {self.prog} --help)\n")


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = _Parser(prog="drone-kd", description="Run an exported detector without ROS.")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")

    detect = subparsers.add_parser("detect", help="find objects in pictures or a video")
    detect.usage = (
        "drone-kd detect [-h] [--json OUT] [--save DIR] [--confidence C] [--max-detections N] "
        "[MODEL.onnx] SOURCE"
    )
    detect.add_argument(
        "model",
        nargs="?",
        metavar="MODEL.onnx",
        help="an exported model (default: the one that comes with the package)",
    )
    detect.add_argument("source", metavar="SOURCE", help="a picture, a folder or a video")
    detect.add_argument("--json", type=Path, metavar="OUT", help="write the boxes to this file")
    detect.add_argument("--save", type=Path, metavar="DIR", help="write pictures with boxes here")
    detect.add_argument(
        "--confidence",
        type=_fraction,
        metavar="C",
        help="scores must be greater than this, 0 to 1",
    )
    detect.add_argument(
        "--max-detections",
        type=_count,
        metavar="N",
        help="at most this many per picture, best first",
    )
    detect.set_defaults(run=_detect)

    bench = subparsers.add_parser("bench", help="measure how long each stage takes")
    bench.add_argument(
        "model",
        nargs="?",
        metavar="MODEL.onnx",
        help="an exported model (default: the one that comes with the package)",
    )
    bench.add_argument("--frames", type=_count, default=100, metavar="N", help="default: 100")
    bench.add_argument(
        "--image", metavar="PATH", help="the picture to use (default: 1280x720 of noise)"
    )
    bench.set_defaults(run=_bench)
    return parser, {"detect": detect, "bench": bench}


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def _count(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return value


def _detect(arguments: argparse.Namespace) -> int:
    if arguments.model is None and arguments.source.endswith(".onnx"):
        raise SourceError(f"{arguments.source} is a model: name a picture, folder or video too")
    detector = load_detector(
        arguments.model,
        confidence=arguments.confidence,
        max_detections=arguments.max_detections,
    )
    classes = detector.backend.spec.classes
    # Said now, not after an hour of work.
    if arguments.json is not None and not arguments.json.parent.is_dir():
        raise SourceError(f"--json {arguments.json}: there is no folder {arguments.json.parent}")
    if arguments.save is not None:
        arguments.save.mkdir(parents=True, exist_ok=True)
        source = Path(arguments.source)
        if arguments.save.resolve() == (source if source.is_dir() else source.parent).resolve():
            raise SourceError(f"--save {arguments.save}: would overwrite the pictures themselves")

    failed = 0

    def report(error: Exception) -> None:
        nonlocal failed
        failed += 1
        print(f"drone-kd: {error}", file=sys.stderr)

    records = []
    progress_at = time.monotonic() + _PROGRESS_SECONDS
    for name, image in read_frames(arguments.source, report):
        try:
            detections = detector(image)
        except InferenceError as error:
            report(InferenceError(f"{name}: {error}"))
            continue
        records.append({"image": name, "detections": _as_json(detections, classes)})
        print(f"{name}: {_summary(detections, classes)}")
        if arguments.save is not None:
            _save(arguments.save, name, draw_detections(image, detections, classes))
        if time.monotonic() >= progress_at:
            print(f"drone-kd: {len(records)} pictures so far", file=sys.stderr)
            progress_at = time.monotonic() + _PROGRESS_SECONDS
    if arguments.json is not None:
        _write_json(arguments.json, records)
    if failed:
        print(f"drone-kd: {failed} of {failed + len(records)} pictures failed", file=sys.stderr)
    return 1 if failed else 0


def _as_json(detections: Detections, classes: tuple[str, ...]) -> list[dict]:
    return [
        {"class": classes[class_id], "score": score, "xyxy": xyxy}
        for xyxy, score, class_id in zip(
            detections.xyxy.tolist(),
            detections.scores.tolist(),
            detections.class_ids.tolist(),
            strict=True,
        )
    ]


def _summary(detections: Detections, classes: tuple[str, ...]) -> str:
    counts = np.bincount(detections.class_ids, minlength=len(classes))
    found = [f"{count} {name}" for name, count in zip(classes, counts, strict=True) if count]
    return ", ".join(found) or "nothing found"


def _save(folder: Path, name: str, image: np.ndarray) -> None:
    target = folder / Path(name).name
    if target.suffix.lower() not in PICTURE_SUFFIXES:  # "clip.mp4#12"
        target = target.with_name(f"{target.name.replace('#', '_')}.jpg")
    if not cv2.imwrite(str(target), image):
        raise OSError(f"{target}: cannot be written")


def _write_json(path: Path, records: list[dict]) -> None:
    # Renamed into place: whoever reads the file never sees half of it.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _bench(arguments: argparse.Namespace) -> int:
    detector = load_detector(arguments.model)
    if arguments.image is None:
        image = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), dtype=np.uint8)
    else:
        image = read_picture(arguments.image)
    for _ in range(_WARM_UP_FRAMES):
        detector(image)
    times = np.array([detector.timed(image)[1] for _ in range(arguments.frames)])

    spec = detector.backend.spec
    print(f"machine   {_machine()}")
    print(f"runtime   {detector.backend.name}, OpenCV {cv2.__version__}, numpy {np.__version__}")
    print(f"model     {spec.input_width}x{spec.input_height}, {len(spec.classes)} classes")
    print(f"picture   {image.shape[1]}x{image.shape[0]}, {len(detector(image))} detections")
    print(f"frames    {arguments.frames}")
    print(f"{'ms':<10}{'p50':>8}{'p95':>8}")
    for stage, column in zip(StageTimes._fields, times.T, strict=True):
        p50, p95 = np.percentile(column, [50, 95])
        print(f"{stage.removesuffix('_ms'):<10}{p50:>8.2f}{p95:>8.2f}")
    return 0


def _machine() -> str:
    """Name the processor; `platform` alone does not on Linux."""
    name = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {platform.system()}"


if __name__ == "__main__":
    sys.exit(main())
