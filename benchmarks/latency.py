"""What latency alone costs: python -m benchmarks.latency [--service-ms 60]

Flights as those of benchmarks.simulation, but computed: a detector that takes the same time for
every frame, without DDS and without a scheduler, so that a busy machine does not matter. A frame
that finds it busy waits, alone (a newer one takes its place) or in a queue of ten.
"""

from __future__ import annotations

import argparse
import itertools
from collections import deque
from typing import NamedTuple

from tqdm import tqdm

from benchmarks.simulation import CONFIDENCE, RATES_HZ, SEED, SPEEDS_MPS, print_head, print_row
from drone_kd.detector import Detector, load_detector
from drone_kd.simulation.scene import CLASSES, FlightPlan, fly
from drone_kd.simulation.scoring.flight_record import Flight
from drone_kd.simulation.scoring.score import score


class Seen(NamedTuple):
    """A frame's time in ns, and the boxes of truth and of an answer, as a record has them."""

    at: int
    truth: list
    said: list


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--service-ms", type=float, default=60.0, help="per look (%(default)s)")
    parser.add_argument("--tiling", default="off", help="as the node's; each tile is a look more")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a flight (%(default)s)")
    parser.add_argument(
        "--speeds", type=float, nargs="+", default=SPEEDS_MPS, metavar="M/S", help="over ground"
    )
    arguments = parser.parse_args()
    detector = load_detector(confidence=CONFIDENCE, tiling=arguments.tiling)
    looks = len(detector.windows(FlightPlan.width, FlightPlan.height))
    service = int(looks * arguments.service_ms * 1e6)
    print_head(f"m/s over ground, frames/s, waiting ({service / 1e6:g} ms a frame)")
    fastest = max(RATES_HZ)
    for speed in arguments.speeds:
        seen = _look(detector, speed, fastest, int(arguments.seconds * fastest))
        for rate, depth in itertools.product(RATES_HZ, (1, 10)):
            if depth > 1 and service < 1e9 / rate:
                continue  # nobody ever waits
            flight = _serve(seen[:: round(fastest / rate)], depth, service)
            flight.add({"classes": list(detector.backend.spec.classes)})
            waiting = "newest only" if depth == 1 else f"queue of {depth}"
            print_row(f"{speed:g}, {rate:g}, {waiting}", score(flight))


def _look(detector: Detector, speed: float, rate: float, count: int) -> list[Seen]:
    """Fly, and let the detector look at every frame."""
    plan = FlightPlan(seed=SEED, scene="crossing", speed_mps=speed, fps=rate)
    classes = detector.backend.spec.classes
    seen = []
    for frame in tqdm(itertools.islice(fly(plan), count), total=count, leave=False):
        found = detector(frame.image)
        truth = zip(frame.class_ids, frame.ids, frame.xyxy.tolist(), strict=True)
        said = zip(found.class_ids, found.scores.tolist(), found.xyxy.tolist(), strict=True)
        seen.append(
            Seen(
                int(frame.t_s * 1e9),
                [[CLASSES[c], str(i), *box] for c, i, box in truth],
                [[classes[c], s, *box] for c, s, box in said],
            )
        )
    return seen


def _serve(frames: list[Seen], depth: int, service: int) -> Flight:
    """The record of a flight whose detector has one frame in work and `depth` that wait."""
    flight = Flight()
    waiting: deque[Seen] = deque(maxlen=depth)
    free_at = 0
    for frame in frames:
        # What waited was begun when the detector became free, before this frame came.
        while waiting and free_at <= frame.at:
            free_at = _answer(flight, waiting.popleft(), free_at, service)
        flight.add({"truth": frame.at, "at": frame.at, "boxes": frame.truth})
        flight.add({"frame": frame.at, "at": frame.at})
        waiting.append(frame)
        if free_at <= frame.at:
            free_at = _answer(flight, waiting.popleft(), frame.at, service)
    return flight


def _answer(flight: Flight, frame: Seen, begun: int, service: int) -> int:
    flight.add({"answer": frame.at, "at": begun + service, "boxes": frame.said})
    return begun + service


if __name__ == "__main__":
    main()
