"""Boxes forecast to the time of their use, against boxes held until the next predictions.

    python -m benchmarks.forecast [--seeds 1 2 3] [--scene crossing] [--cost]

Flights of benchmarks.simulation with a computed detector that takes the same time for every
frame, while the newest frame waits, as in benchmarks.latency. A consumer needs boxes at the time
of each frame; the camera motion is measured up to the frame before. Offline: predictions against
their own frame. Held: the newest predictions as they are. Forecast: tracks predicted to that time.
--cost measures the processor time of camera motion and tracker instead.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from benchmarks.runs import Result
from benchmarks.simulation import CONFIDENCE, KNOWN
from drone_kd.core.detections import Detections
from drone_kd.detector import Detector, load_detector
from drone_kd.metrics import annotation, mean_precision, precision
from drone_kd.progress import track
from drone_kd.simulation.scene import CLASSES, SCENES, FlightPlan, Frame, fly
from drone_kd.tracking import EgoMotion, Motion, Tracker


class Case(NamedTuple):
    """Ground speed, rate of the camera (a divisor of 20 Hz), and time of an inference."""

    speed_mps: float
    rate_hz: float
    service_ms: float


CASES = tuple(Case(*case) for case in ((10, 10, 60), (10, 20, 100), (10, 10, 200), (20, 10, 100)))
_FASTEST_HZ = 20.0
_WAYS = ("offline", "held", "forecast")


class Seen(NamedTuple):
    """A frame's ground truth and predictions, with classes as indices into CLASSES."""

    at_ns: int
    truth: Frame
    predictions: Detections


class Flown(NamedTuple):
    """A flight at the fastest rate, and its camera motions at each rate."""

    frames: list[Seen]
    motions: dict[float, list[Motion]]


def main() -> None:
    """Compute, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N", help="of the scenes")
    add("--scene", choices=SCENES, default="crossing", help="(%(default)s)")
    add("--seconds", type=float, default=10.0, help="of a flight (%(default)s)")
    add("--cost", action="store_true", help="measure the time per frame instead")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    if arguments.cost:
        _cost()
        return
    detector = load_detector(confidence=CONFIDENCE)
    scores: dict[Case, list[list[tuple[float, float]]]] = {}
    for number, seed in enumerate(arguments.seeds, start=1):
        for speed in sorted({case.speed_mps for case in CASES}):
            plan = FlightPlan(seed, scene=arguments.scene, speed_mps=speed, fps=_FASTEST_HZ)
            flown = _fly(detector, plan, arguments.seconds)
            for case in CASES:
                if case.speed_mps == speed:
                    found = [_precision(pairs) for pairs in serve(flown, case)]
                    scores.setdefault(case, []).append(found)
        _write(scores, arguments.scene, arguments.seeds[:number])


def _write(
    scores: dict[Case, list[list[tuple[float, float]]]], scene: str, seeds: list[int]
) -> None:
    """Print and write the table of the seeds flown so far."""
    columns = [f"{figure} {way}" for figure in ("mAP50", "mAP50-95") for way in _WAYS]
    shares = ["mAP50 forecast / offline", "mAP50-95 forecast / offline"]
    known = {**KNOWN, "seeds": " ".join(map(str, seeds))}
    what = f"boxes held and forecast, {scene}, {len(seeds)} seeds"
    header = ["m/s, Hz, inference (ms)", *columns, *shares]
    result = Result(f"simulation/forecast-{scene}", what, header, known)
    for case, flights in scores.items():
        result.add("{:g}, {:g}, {:g}".format(*case), *_cells(np.array(flights)))


def serve(flown: Flown, case: Case) -> list[list[tuple[Frame, Detections]]]:
    """Return pairs of ground truth and boxes: offline, held and forecast.

    The newest frame waits while an inference runs.
    """
    plan, service = FlightPlan, int(case.service_ms * 1e6)
    tracker = Tracker(plan.width, plan.height)
    held = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    offline, holding, forecast = [], [], []
    running: Seen | None = None
    waiting: Seen | None = None
    free_at = 0
    frames = flown.frames[:: round(_FASTEST_HZ / case.rate_hz)]
    for frame, motion in zip(frames, flown.motions[case.rate_hz], strict=True):
        while running is not None and free_at <= frame.at_ns:
            held = running.predictions
            tracker.update(running.at_ns, held)
            offline.append((running.truth, held))
            running, waiting = waiting, None
            free_at += service
        holding.append((frame.truth, held))
        forecast.append((frame.truth, tracker.predict(frame.at_ns).detections))
        tracker.add_motion(motion)
        if running is None:
            running, free_at = frame, frame.at_ns + service
        else:
            waiting = frame
    return [offline, holding, forecast]


def _fly(detector: Detector, plan: FlightPlan, seconds: float) -> Flown:
    names = detector.backend.spec.classes
    numbers = np.array([CLASSES.index(n) if n in CLASSES else len(CLASSES) for n in names])
    rates = sorted({case.rate_hz for case in CASES})
    egos = {rate: EgoMotion() for rate in rates}
    motions: dict[float, list[Motion]] = {rate: [] for rate in rates}
    count, frames = round(seconds * plan.fps), []
    for n, frame in enumerate(
        track(itertools.islice(fly(plan), count), f"Seed {plan.seed}", "frame", total=count)
    ):
        at_ns, found = round(n / plan.fps * 1e9), detector(frame.image)
        known = numbers[found.class_ids] < len(CLASSES)
        kept = Detections(found.xyxy[known], found.scores[known], numbers[found.class_ids][known])
        for rate in rates:
            if n % round(plan.fps / rate) == 0:
                motions[rate].append(egos[rate].update(frame.image, at_ns))
        frames.append(Seen(at_ns, frame, kept))
    return Flown(frames, motions)


def _precision(pairs: Sequence[tuple[Frame, Detections]]) -> tuple[float, float]:
    """Return mAP50 and mAP50-95 in percent."""
    truths: list[dict] = []
    found: list[dict] = []
    for image, (truth, boxes) in enumerate(pairs):
        for box, class_id in zip(truth.xyxy, truth.class_ids, strict=True):
            truths.append(annotation(len(truths) + 1, image, box, class_id))
        for box, value, class_id in zip(boxes.xyxy, boxes.scores, boxes.class_ids, strict=True):
            found.append({**annotation(0, image, box, class_id), "score": float(value)})
    classes = sorted({truth["category_id"] for truth in truths})
    images = [{"id": image} for image in range(len(pairs))]
    values = precision(images, truths, found, classes, sizes={})["all"]
    return 100 * (mean_precision(values[:1]) or 0), 100 * (mean_precision(values) or 0)


def _cells(flights: np.ndarray) -> list[str]:
    """Return the means over flights (seeds, ways, 2), and the ratios of these means."""
    means = flights.mean(axis=0)
    return [f"{value:.1f}" for value in means.T.ravel()] + [
        f"{value:.2f}" for value in means[2] / means[0]
    ]


def _cost() -> None:
    """Measure camera motion per frame of 1280 x 720, update and prediction with 100 objects."""
    frames = [f.image for f in itertools.islice(fly(FlightPlan(1, scene="crossing")), 40)]
    times: dict[str, list[float]] = {}
    rng = np.random.default_rng(0)
    corner = np.column_stack([np.arange(100) % 20 * 60 + 20, np.arange(100) // 20 * 130 + 20])
    for _ in range(2):
        ego, tracker = EgoMotion(), Tracker(1280, 720)
        for n, image in enumerate(frames):
            at_ns, start = n * 10**8, (corner + rng.normal(0, 1, corner.shape)).astype(np.float32)
            boxes = Detections(
                np.hstack([start, start + 30]), np.full(100, 0.5, np.float32), np.zeros(100, int)
            )
            marks = [time.process_time()]
            motion = ego.update(image, at_ns)
            marks.append(time.process_time())
            tracker.add_motion(Motion(at_ns, np.eye(3), motion.quality))
            tracker.update(at_ns, boxes)
            marks.append(time.process_time())
            tracker.predict(at_ns + 10**8)
            marks.append(time.process_time())
            for step, spent in zip(("motion", "update", "predict"), np.diff(marks), strict=True):
                times.setdefault(step, []).append(1000 * spent)
    columns = ["step", "CPU ms per frame, p50", "p10", "p90"]
    result = Result("simulation/forecast-cost", "processor time of tracking", columns, KNOWN)
    total = np.sum([times[step] for step in times], axis=0)
    for step, spent in (*times.items(), ("all", total)):
        result.add(step, *(f"{np.percentile(spent, p):.1f}" for p in (50, 10, 90)))


if __name__ == "__main__":
    main()
