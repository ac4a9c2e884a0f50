"""drone-kd rehearse: fly a model on this machine, and print its streaming score.

Camera, detector and scorer are separate processes that talk over real DDS on this machine only, in
the domain ROS_DOMAIN_ID if it is set, else in a random one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import drone_kd
from drone_kd.commands.shared_options import count, fraction
from drone_kd.dds import carry_large_images, choose_domain, stay_on_this_machine
from drone_kd.media.image_files import SourceError
from drone_kd.processes import running
from drone_kd.progress import Progress, print_line
from drone_kd.simulation.scoring.score_command import RECORD, write_score
from drone_kd.simulation.scoring.text import summary
from drone_kd.simulation.simulate import (
    add_flight_options,
    need_ros,
    node_arguments,
    ros_arguments,
)
from drone_kd.text import one_line

_POLL_S = 0.1
_LAST_PREDICTIONS_S = 1.0
_START_S = 60


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    model = "a model file (default: the one of the package)"
    parser.add_argument("model", nargs="?", default="", metavar="MODEL", help=model)
    where = "folder for record, score and report"
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help=where)
    threshold = "score threshold of the detector"
    parser.add_argument("--confidence", type=fraction, default=0.25, metavar="C", help=threshold)
    parser.add_argument(
        "--misses", type=count, default=6, metavar="N", help="number of worst misses to keep"
    )
    add_flight_options(parser)
    parser.set_defaults(seconds=60.0, rate=10.0)


def rehearse(
    camera: list[str],
    output: Path,
    detector: list[str] | None,
    seconds: float,
    misses: int = 6,
    confidence: float = 0.25,
    rate_hz: float = 0.0,
) -> dict:
    """Fly a simulated flight with a detector; returns the score, as `scoring.score.score` does.

    Args:
        camera: ROS arguments of the node `camera`; see `node_arguments`.
        output: folder for flight.jsonl, misses/, score.json and report.html.
        detector: command of the detector, which subscribes to `image` and publishes
            `detector/detections`; None: a detector already runs.
        seconds: length of the flight.
        misses: number of frames of the worst misses to keep.
        confidence: least score of a prediction for recall.
        rate_hz: that the camera was asked for, to count frames not made in time; 0: unknown.

    Raises:
        SourceError: a process failed.
        FlightError: the flight cannot be scored.
    """
    (output / RECORD).unlink(missing_ok=True)
    node = [sys.executable, "-m"]
    scorer = ros_arguments({"output": str(output), "pictures": misses, "rate": rate_hz})
    for topic in ("detector/detections", "detector/label_info", "camera/ground_truth"):
        scorer += ["-r", f"{topic.partition('/')[2]}:={topic}"]
    listeners = ["-p", f"listeners:={2 if misses else 1}"]
    with (
        running([*node, "drone_kd.simulation.scorer_node", *scorer]) as recorder,
        running(detector) if detector else contextlib.nullcontext() as flyer,
    ):
        command = [*node, "drone_kd.simulation.camera_node", *camera, *listeners]
        with running(command) as flown, Progress("Fly", seconds, "s") as progress:
            others = {"the scorer": recorder}
            if flyer is not None:
                others["the detector"] = flyer
            _wait(flown, others, output / RECORD, seconds, progress)
    return write_score(output, confidence, one_line(output.resolve().name))


def _wait(
    flown: subprocess.Popen,
    others: dict[str, subprocess.Popen],
    record: Path,
    seconds: float,
    progress: Progress,
) -> None:
    """Wait for the end of the flight; report other processes that end early."""
    deadline = time.monotonic() + seconds + _START_S
    began: float | None = None
    while flown.poll() is None:
        for name in [name for name, process in others.items() if process.poll() is not None]:
            line = f"{name} ended with exit code {others.pop(name).returncode}"
            if not _has_begun(record):
                raise SourceError(f"{line} before the flight began")
            print_line(f"drone-kd: {line}", sys.stderr)
        if time.monotonic() > deadline:
            raise SourceError(
                f"the flight of {seconds:g} s was not over after {seconds + _START_S:g} s: does "
                "the detector listen to `image`?"
            )
        if began is None and _has_begun(record):
            began = time.monotonic()
        if began is not None:
            progress.update(min(time.monotonic() - began, seconds) - progress.done)
        time.sleep(_POLL_S)
    if flown.returncode:
        raise SourceError(f"the camera ended with exit code {flown.returncode}")
    time.sleep(_LAST_PREDICTIONS_S)


def _has_begun(record: Path) -> bool:
    return record.is_file() and '{"truth"' in record.read_text(encoding="utf-8")


def detector_command(model: str, confidence: float) -> list[str]:
    """Return the command of the detector node as `rehearse` starts it."""
    path = str(Path(model).resolve()) if model else ""
    values = {"autostart": True, "model": path, "confidence": confidence}
    return [sys.executable, "-m", "drone_kd.ros.detector", *ros_arguments(values)]


def run(arguments: argparse.Namespace) -> int:
    """Run camera, detector and scorer, then print the score."""
    camera = node_arguments(arguments)
    if not arguments.seconds:
        raise SourceError("--seconds: expected more than 0: a rehearsal ends, and is scored then")
    if arguments.model and not Path(arguments.model).exists():
        raise SourceError(f"{one_line(arguments.model)}: no such model")
    output = arguments.output
    if output.is_dir() and any(output.iterdir()) and not (output / RECORD).exists():
        shown = one_line(output)
        raise SourceError(f"{shown}: expected a new folder, or that of an earlier rehearsal")
    need_ros("rehearse")
    # So that a kill, too, ends what was started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    stay_on_this_machine()
    choose_domain()
    carry_large_images()
    # The nodes import this very package, and nothing from the working directory (Python ≥ 3.11).
    os.environ["PYTHONSAFEPATH"] = "1"
    paths = [str(Path(drone_kd.__file__).parents[1]), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    a = arguments
    detector = detector_command(a.model, a.confidence)
    scored = rehearse(camera, a.output, detector, a.seconds, a.misses, a.confidence, a.rate)
    print(summary(scored))
    print(f"report: {one_line(arguments.output / 'report.html')}")
    return 0
