"""Offline and streaming scores of the default model in simulation.

    python -m benchmarks.simulation [--seconds 20] [--seeds 10]

Each row is the mean over the flights of seeds 0, 1, ... with half of its 95 % interval. Flights
over the crossing at several ground speeds and frame rates, with and without tiles, and the cost of
the simulator on one core. Writes benchmarks/simulation/*.csv; `make results` then writes
simulation.md.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from std_msgs.msg import Header

from benchmarks.rig import isolate
from benchmarks.runs import Result
from drone_kd.ros.detection_messages import bgr_to_image
from drone_kd.simulation.rehearse import detector_command, rehearse
from drone_kd.simulation.scene import (
    CLASSES,
    FRAMES_PER_WORLD,
    SCENES,
    FlightPlan,
    Frame,
    draw_frame,
    fly,
)
from drone_kd.simulation.scoring.flight_record import Truth
from drone_kd.simulation.scoring.intervals import mean_interval
from drone_kd.simulation.scoring.text import WAYS
from drone_kd.simulation.simulate import ros_arguments
from drone_kd.simulation.truth_messages import truth_to_message

SEEDS = 10
SPEEDS_MPS, RATES_HZ = (5.0, 10.0, 20.0), (5.0, 10.0, 20.0)
# Low, so that average precision covers the whole curve.
CONFIDENCE = 0.05
COLUMNS = (
    *("mAP50 offline", "mAP50 streaming", "mAP50 sap"),
    *("recall offline", "recall streaming", "recall sap"),
    *("age p50, p95 (ms)", "frames due (Hz), processed"),
)
KNOWN = {
    "classes": " ".join(CLASSES),
    "image_sizes": "camera 1280x720, model as packaged",
}


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of a flight (%(default)s)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="flights per row (%(default)s)")
    parser.add_argument("--only", choices=("speed", "tiling", "cost"), help="one of the tables")
    arguments = parser.parse_args()
    isolate()
    if arguments.only in (None, "speed"):
        result = flights("dds", "streaming scores over DDS", range(arguments.seeds))
        for speed, rate in itertools.product(SPEEDS_MPS, RATES_HZ):
            detector = detector_command("", CONFIDENCE)
            name = f"{speed:g}, {rate:g}"
            result.add(name, *_fly(detector, speed, rate, arguments))
    if arguments.only in (None, "tiling"):
        what = "streaming scores over DDS at 10 m/s, with tiles"
        result = flights("dds-tiles", what, range(arguments.seeds))
        for rate, tiling in itertools.product((5.0, 10.0), ("off", "auto")):
            detector = [*detector_command("", CONFIDENCE), "-p", f'tiling:="{tiling}"']
            result.add(f"{rate:g}, {tiling}", *_fly(detector, 10.0, rate, arguments))
    if arguments.only in (None, "cost"):
        _cost()


def flights(name: str, what: str, seeds: Sequence[int]) -> Result:
    """Return a table of flights, whose rows are a name and `cells`."""
    known = {**KNOWN, "seeds": f"{' '.join(map(str, seeds))} (scene)"}
    return Result(f"simulation/{name}", what, ["flight", *COLUMNS], known)


def _fly(
    detector: list[str], speed: float, rate: float, arguments: argparse.Namespace
) -> list[str]:
    scores, seconds = [], arguments.seconds
    for seed in range(arguments.seeds):
        camera = {"scene": "crossing", "seed": seed, "speed": speed, "rate": rate}
        command = ros_arguments({**camera, "seconds": seconds})
        with tempfile.TemporaryDirectory() as folder:
            scores.append(
                rehearse(command, Path(folder), detector, seconds, misses=0, rate_hz=rate)
            )
    return cells(scores)


def cells(scores: Sequence[dict]) -> list[str]:
    """Return the means of flights in the order of `COLUMNS`, of several with intervals."""
    found = []
    for key, way in itertools.product(("map50", "recall"), WAYS):
        mean, half = mean_interval([100 * (score[way][key] or 0) for score in scores])
        found.append(f"{mean:.1f}" if half is None else f"{mean:.1f} ± {half:.1f}")
    ages = [np.mean([score["age_ms"][p] for score in scores]) for p in ("p50", "p95")]
    due, processed = (sum(s["frames"][k] for s in scores) for k in ("due", "processed"))
    rate = np.mean([score["frames"]["rate_hz"] for score in scores])
    age = ", ".join(f"{value:.0f}" for value in ages)
    return [*found, age, f"{due} ({rate:.1f}), {processed}"]


def _cost() -> None:
    """Measure the frames per second that one core renders and converts to messages."""
    cv2.setNumThreads(1)
    columns = "scene", "frames/s of one core"
    known = {**KNOWN, "seeds": "0 (scene)"}
    result = Result("simulation/cost", "cost of rendering", columns, known)
    for scene in SCENES:
        flight = fly(FlightPlan(scene=scene))
        _convert(next(flight))
        result.add(scene, _rate(map(_convert, itertools.islice(flight, 200))))
    draw_frame(0)  # fills the texture banks
    seeds = range(FRAMES_PER_WORLD, 11 * FRAMES_PER_WORLD)
    rate = _rate(draw_frame(seed) for seed in seeds)
    result.add("training images of `drone-kd generate`, 640x640", rate)


def _rate(work: Iterable[object]) -> str:
    """Do 200 pieces of work; returns their rate per second of processor time."""
    rates = []
    pieces = iter(work)
    for _ in range(5):
        started = time.process_time()
        for _ in itertools.islice(pieces, 40):
            pass
        rates.append(40 / (time.process_time() - started))
    return f"{np.median(rates):.1f} ({min(rates):.1f}, {max(rates):.1f})"


def _convert(frame: Frame) -> None:
    header = Header()
    bgr_to_image(frame.image, header)
    names = tuple(CLASSES[i] for i in frame.class_ids)
    truth_to_message(Truth(frame.xyxy, names, tuple(map(str, frame.ids))), header)


if __name__ == "__main__":
    main()
