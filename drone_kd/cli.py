"""The command line: drone-kd detect, bench and so on; `_parsers` lists the commands."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import NoReturn

import cv2
import numpy as np

from drone_kd.backends import RUNTIMES, open_backend
from drone_kd.commands.selftest import run_selftest, summary
from drone_kd.commands.stage_times import stage_percentiles
from drone_kd.core.detections import Detections
from drone_kd.core.model_spec import ModelError
from drone_kd.core.postprocess import InferenceError
from drone_kd.detector import load_detector
from drone_kd.files import write_text
from drone_kd.lineage import family_tree
from drone_kd.machine import machine_name
from drone_kd.media.image_files import PICTURE_SUFFIXES, SourceError, read_frames, read_picture
from drone_kd.paths import default_model_path, selftest_image_path
from drone_kd.simulation.rehearse import add_rehearse
from drone_kd.simulation.scoring.command import add_score
from drone_kd.simulation.scoring.flight_record import FlightError
from drone_kd.simulation.simulate import add_simulate
from drone_kd.visualization import draw_detections

_PROGRESS_SECONDS = 2.0


def main(argv: list[str] | None = None) -> int:
    """Run drone-kd.

    Returns:
        0: done; 1: done, but some pictures or the self-test failed; 2: wrong input; 130:
        interrupted.
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
    except (ModelError, SourceError, InferenceError, FlightError, OSError) as error:
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
    parser = _Parser(prog="drone-kd", description="Run, rehearse and score an exported detector.")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")

    detect = subparsers.add_parser("detect", help="find objects in pictures or a video")
    detect.usage = (
        "drone-kd detect [-h] [--json OUT] [--save DIR] [--confidence C] [--max-detections N] "
        "[--runtime R] [MODEL.onnx] SOURCE"
    )
    _add_model(detect)
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
    _add_runtime(detect)
    detect.set_defaults(run=_detect)

    build = subparsers.add_parser("build", help="build the TensorRT engine on this device")
    _add_model(build)
    build.set_defaults(run=_build)

    bench = subparsers.add_parser("bench", help="measure how long each stage takes")
    _add_model(bench)
    bench.add_argument("--frames", type=_count, default=100, metavar="N", help="default: 100")
    bench.add_argument(
        "--image", metavar="PATH", help="the picture to use (default: 1280x720 of noise)"
    )
    _add_runtime(bench)
    bench.set_defaults(run=_bench)

    selftest = subparsers.add_parser(
        "selftest", help="compare TensorRT with ONNX Runtime on this device, and measure both"
    )
    _add_model(selftest)
    selftest.add_argument("--frames", type=_count, default=100, metavar="N", help="default: 100")
    selftest.add_argument(
        "--image", metavar="PATH", help="the picture to use (default: one of the package)"
    )
    selftest.add_argument(
        "--output",
        type=Path,
        default=Path("selftest.json"),
        metavar="OUT",
        help="write the report to this file (default: selftest.json)",
    )
    selftest.set_defaults(run=_selftest)

    lineage = subparsers.add_parser(
        "lineage", help="print a model's family tree: what it was trained from, when, on what"
    )
    _add_model(lineage)
    lineage.set_defaults(run=_lineage)
    return parser, {
        "detect": detect,
        "build": build,
        "bench": bench,
        "selftest": selftest,
        "lineage": lineage,
        "simulate": add_simulate(subparsers),
        "rehearse": add_rehearse(subparsers),
        "score": add_score(subparsers),
    }


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "model",
        nargs="?",
        metavar="MODEL.onnx",
        help="an exported model (default: the one that comes with the package)",
    )


def _add_runtime(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--runtime",
        choices=RUNTIMES,
        metavar="R",
        help=f"{', '.join(RUNTIMES)} (default: as config/detector.yaml says)",
    )


def _progress(line: str) -> None:
    print(f"drone-kd: {line}", file=sys.stderr, flush=True)


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
        runtime=arguments.runtime,
        progress=_progress,
    )
    classes = detector.backend.spec.classes
    if arguments.json is not None:
        _check_folder("--json", arguments.json)
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
        write_text(arguments.json, f"{json.dumps(records, indent=1)}\n")
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


def _check_folder(option: str, path: Path) -> None:
    """Say now, not after an hour of work, that a file cannot be written."""
    if not path.parent.is_dir():
        raise SourceError(f"{option} {path}: there is no folder {path.parent}")


def _build(arguments: argparse.Namespace) -> int:
    model = arguments.model or default_model_path()
    print(open_backend(model, runtime="tensorrt", progress=_progress).name)
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    detector = load_detector(arguments.model, runtime=arguments.runtime, progress=_progress)
    if arguments.image is None:
        image = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), dtype=np.uint8)
    else:
        image = read_picture(arguments.image)
    percentiles = stage_percentiles(detector, image, arguments.frames, (50, 95))

    spec = detector.backend.spec
    print(f"machine   {machine_name()}")
    print(f"runtime   {detector.backend.name}, OpenCV {cv2.__version__}, numpy {np.__version__}")
    print(f"model     {spec.input_width}x{spec.input_height}, {len(spec.classes)} classes")
    print(f"picture   {image.shape[1]}x{image.shape[0]}, {len(detector(image))} detections")
    print(f"frames    {arguments.frames}")
    print(f"{'ms':<10}{'p50':>8}{'p95':>8}")
    for stage, (p50, p95) in percentiles.items():
        print(f"{stage:<10}{p50:>8.2f}{p95:>8.2f}")
    return 0


def _selftest(arguments: argparse.Namespace) -> int:
    _check_folder("--output", arguments.output)
    picture = Path(arguments.image or selftest_image_path())
    report = run_selftest(
        Path(arguments.model or default_model_path()),
        picture,
        read_picture(picture),
        arguments.frames,
        _progress,
    )
    write_text(arguments.output, f"{json.dumps(report, indent=1)}\n")
    print(summary(report))
    print(f"report       {arguments.output}")
    return 1 if report["verdict"] == "fail" else 0


def _lineage(arguments: argparse.Namespace) -> int:
    print(family_tree(Path(arguments.model or default_model_path())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
