"""What latency alone costs: python -m benchmarks.latency [--service-ms 60]

The same flights as benchmarks.simulation, but computed: a detector that takes the same time for
every frame, without DDS and without a scheduler, so that a busy machine does not matter. A frame
that finds it busy waits, alone (a newer one takes its place) or in a queue of ten.
"""

from __future__ import annotations

import argparse
import itertools
from collections import deque

from tqdm import tqdm

from benchmarks.simulation import CONFIDENCE, RATES_HZ, SEED, SPEEDS_MPS, print_head, print_row
from drone_kd.detector import load_detector
from drone_kd.scene import CLASSES, FlightPlan, fly
from drone_kd.score.flight import Flight
from drone_kd.score.summary import score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--service-ms", type=float, default=60.0, help="per frame (%(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a flight (%(default)s)")
    arguments = parser.parse_args()
    detector = load_detector(confidence=CONFIDENCE)
    print_head(f"m/s over ground, frames/s, waiting ({arguments.service_ms:g} ms a frame)")
    for speed, rate, depth in (
        *itertools.product(SPEEDS_MPS, RATES_HZ, (1,)),
        (10.0, 20.0, 10),
    ):
        flight = _fly(detector, speed, rate, depth, arguments.service_ms, arguments.seconds)
        waiting = "newest only" if depth == 1 else f"queue of {depth}"
        print_row(f"{speed:g}, {rate:g}, {waiting}", score(flight))


def _fly(detector, speed, rate, depth, service_ms, seconds) -> Flight:
    """The record of a flight whose detector has one frame in work and `depth` that wait."""
    flight = Flight()
    classes = detector.backend.spec.classes
    flight.add({"classes": list(classes)})
    plan = FlightPlan(seed=SEED, scene="crossing", speed_mps=speed, fps=rate)
    service = int(service_ms * 1e6)
    waiting: deque = deque(maxlen=depth)
    free_at = 0
    count = int(seconds * rate)
    for frame in tqdm(itertools.islice(fly(plan), count), total=count, leave=False):
        at = int(frame.t_s * 1e9)
        free_at = _serve(flight, detector, waiting, free_at, service, until=at)
        rows = [
            [CLASSES[c], str(i), *box]
            for box, c, i in zip(frame.xyxy.tolist(), frame.class_ids, frame.ids, strict=True)
        ]
        flight.add({"truth": at, "at": at, "boxes": rows})
        flight.add({"frame": at, "at": at})
        waiting.append((at, frame.image))
        free_at = _serve(flight, detector, waiting, free_at, service, until=at)
    return flight


def _serve(flight, detector, waiting, free_at, service, until) -> int:
    """Work on what waits as long as work begins by `until`; returns when the detector is free."""
    classes = detector.backend.spec.classes
    while waiting and max(free_at, waiting[0][0]) <= until:
        at, image = waiting.popleft()
        free_at = max(free_at, at) + service
        found = detector(image)
        rows = [
            [classes[c], s, *box]
            for box, s, c in zip(
                found.xyxy.tolist(), found.scores.tolist(), found.class_ids, strict=True
            )
        ]
        flight.add({"answer": at, "at": free_at, "boxes": rows})
    return free_at


if __name__ == "__main__":
    main()
