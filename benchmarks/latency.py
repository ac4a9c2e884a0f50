"""Effect of latency alone on the streaming score.

    python -m benchmarks.latency [--service-ms 60] [--seeds 0 1 2 3 4 5 6 7 8 9]

The flights of benchmarks.simulation, means over seeds with half of their 95 % intervals, with a
computed detector that takes the same time for every frame, without DDS and scheduler, so that the
load of the machine does not matter. A frame that arrives while the detector is busy waits, alone
(a newer one replaces it) or in a queue of ten.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict, deque
from typing import NamedTuple

from benchmarks.simulation import CONFIDENCE, RATES_HZ, SEEDS, SPEEDS_MPS, cells, flights
from drone_kd.detector import Detector, load_detector
from drone_kd.progress import track
from drone_kd.simulation.scene import CLASSES, FlightPlan, fly
from drone_kd.simulation.scoring.flight_record import Flight
from drone_kd.simulation.scoring.score import score


class Processed(NamedTuple):
    """Time of a frame in ns, ground truth and predictions, as rows of a flight record."""

    at: int
    truth: list
    predictions: list


def main() -> None:
    """Compute, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--service-ms", type=float, default=60.0, help="per inference (%(default)s)")
    add("--tiling", default="off", help="as in the node; each tile is one inference")
    add("--seconds", type=float, default=10.0, help="of a flight (%(default)s)")
    add("--speeds", type=float, nargs="+", default=SPEEDS_MPS, metavar="M/S", help="over ground")
    add("--seeds", type=int, nargs="+", default=range(SEEDS), metavar="N", help="of the flights")
    arguments = parser.parse_args()
    detector = load_detector(confidence=CONFIDENCE, tiling=arguments.tiling)
    inferences = len(detector.windows(FlightPlan.width, FlightPlan.height))
    service = int(inferences * arguments.service_ms * 1e6)
    name = "computed" if arguments.tiling == "off" else "computed-tiles"
    if len(arguments.seeds) == 1:
        name += f"-seed-{arguments.seeds[0]}"
    what = f"streaming scores at {service / 1e6:g} ms per frame"
    result = flights(name, what, arguments.seeds)
    fastest = max(RATES_HZ)
    for speed in arguments.speeds:
        scores: dict[tuple[float, int], list[dict]] = defaultdict(list)
        for seed in arguments.seeds:
            frames = _process(detector, seed, speed, fastest, int(arguments.seconds * fastest))
            for rate, depth in itertools.product(RATES_HZ, (1, 10)):
                if depth > 1 and service < 1e9 / rate:
                    continue  # no frame ever waits
                flight = _serve(frames[:: round(fastest / rate)], depth, service)
                flight.add({"classes": list(detector.backend.spec.classes)})
                scores[rate, depth].append(score(flight))
        for (rate, depth), flown in scores.items():
            waiting = "newest only" if depth == 1 else f"queue of {depth}"
            result.add(f"{speed:g}, {rate:g}, {waiting}", *cells(flown))


def _process(
    detector: Detector, seed: int, speed: float, rate: float, count: int
) -> list[Processed]:
    """Run the detector on every frame of a flight."""
    plan = FlightPlan(seed=seed, scene="crossing", speed_mps=speed, fps=rate)
    classes = detector.backend.spec.classes
    frames = []
    for frame in track(itertools.islice(fly(plan), count), "Render", "frame", total=count):
        found = detector(frame.image)
        truth = zip(frame.class_ids, frame.ids, frame.xyxy.tolist(), strict=True)
        predicted = zip(found.class_ids, found.scores.tolist(), found.xyxy.tolist(), strict=True)
        boxes = [[CLASSES[c], str(i), *box] for c, i, box in truth]
        predictions = [[classes[c], s, *box] for c, s, box in predicted]
        frames.append(Processed(int(frame.t_s * 1e9), boxes, predictions))
    return frames


def _serve(frames: list[Processed], depth: int, service: int) -> Flight:
    """Return the record of a detector that processes one frame while up to `depth` wait."""
    flight = Flight()
    waiting: deque[Processed] = deque(maxlen=depth)
    free_at = 0
    for frame in frames:
        # The detector started with waiting frames before this frame arrived.
        while waiting and free_at <= frame.at:
            free_at = _finish(flight, waiting.popleft(), free_at, service)
        flight.add({"truth": frame.at, "at": frame.at, "boxes": frame.truth})
        flight.add({"frame": frame.at, "at": frame.at})
        waiting.append(frame)
        if free_at <= frame.at:
            free_at = _finish(flight, waiting.popleft(), frame.at, service)
    return flight


def _finish(flight: Flight, frame: Processed, begun: int, service: int) -> int:
    flight.add({"result": frame.at, "at": begun + service, "boxes": frame.predictions})
    return begun + service


if __name__ == "__main__":
    main()
