"""Cost of mining.

    python -m benchmarks.mining speed FLIGHT --teacher T [--frames N]
    python -m benchmarks.mining memory MINUTES...
    python -m benchmarks.mining cluster FLIGHT --teacher T [--frames N]

`speed` measures the processor time of each stage on one core, frame by frame in turn. `memory`
mines synthetic bags of several lengths at two frames per second, each in its own process.
`cluster` measures the wall time of one flight in one process and on one and two Ray nodes with one
core each, on an idle machine with two cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from time import monotonic, process_time
from typing import Any

import cv2
import numpy as np

from benchmarks.rig import markdown_head, markdown_row
from recorded import content, jpeg, scene, write_bag  # `benchmarks.rig` sets the path
from tiny_model import tiny_spec, write_bright_cell_model

HALF_SECOND_NS = 500_000_000


def speed(flight: str, teacher: str, frames: int) -> None:
    """Print the median processor time of each stage per frame."""
    # Deferred, so that `memory` measures the imports of mining alone.
    from drone_kd_training.mining import stages
    from drone_kd_training.mining.flights import plan, read
    from drone_kd_training.mining.frame_features import drop_near_duplicates
    from drone_kd_training.mining.student_and_teacher import open_models

    cv2.setNumThreads(1)
    models = open_models(teacher, None)
    said: Counter = Counter()
    every = (
        f for s in plan([flight], [], print) for f in read(s, lambda e: said.update([str(e)]))
    )
    times: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        start = process_time()
        result = call(*arguments)
        times.setdefault(name, []).append(process_time() - start)
        return result

    while len(times.get("label", ())) < frames:
        frame = timed("read", lambda: next(every, None))
        if frame is None:
            break
        (features,) = timed("thin", lambda: list(drop_near_duplicates([frame])))  # noqa: B023
        timed("score (student and teacher)", stages.score, [features], models)
        timed("teacher alone", models.predict, frame.image)
        timed("label", stages.label, [frame], models)
    print(markdown_head(["stage", "ms per frame, median"]))
    for name, own in times.items():
        print(f"| {name} | {1e3 * np.median(own[2:]):.1f} |")
    parts = ("read", "thin", "score (student and teacher)")
    mining = sum(np.median(times[name][2:]) for name in parts)
    alone = np.median(times["teacher alone"][2:])
    print(
        f"\n{1 / mining:.2f} frames/s a core where no frame is left out, the teacher alone "
        f"{1 / alone:.2f}: {alone / mining:.0%}; {len(times['label'])} frames"
    )


def memory(minutes: list[int]) -> None:
    """Print the peak memory of mining bags of these lengths."""
    print(markdown_head(["minutes", "frames", "peak memory, MB", "processor time, s"]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_bright_cell_model(folder / "model.onnx", tiny_spec(classes=("car", "tree")))
        for length in minutes:
            frames = 120 * length
            bag = write_bag(folder / f"{length}", islice(_frames(), frames))
            command = [sys.executable, "-c", _CHILD, "mine", str(bag), "--frames", "100"]
            command += ["--teacher", str(model), "--student", str(model)]
            command += ["--output", str(folder / f"mined{length}")]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            peak, seconds = done.stdout.split()[-2:]
            print(f"| {length} | {frames} | {int(peak) / 1024:.0f} | {float(seconds):.0f} |")


_CHILD = """
import resource, sys
from drone_kd.cli import main
assert main(sys.argv[1:]) == 0
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_maxrss, used.ru_utime + used.ru_stime)
"""


def cluster(flight: str, teacher: str, frames: int) -> None:
    """Print the seconds that mining a flight takes in one process and on Ray nodes."""
    from ray_nodes import ray_nodes

    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "drone_kd.cli", "mine", flight, "--teacher", teacher]
        command += ["--frames", str(frames), "--output"]

        def seconds(output: str, *options: str) -> float:
            start = monotonic()
            subprocess.run([*command, f"{name}/{output}", *options], check=True)
            return monotonic() - start

        print(markdown_head(["", "s", "relative to one process", "data set"]))
        alone = seconds("one")
        print(f"| one process | {alone:.0f} | 1.00 | |", flush=True)
        for nodes in (1, 2):
            with ray_nodes(nodes) as address:
                taken = seconds(f"{nodes}", "--cluster", address)
            same = content(Path(name, "one")) == content(Path(name, str(nodes)))
            cells = f"{taken:.0f}", f"{alone / taken:.2f}", "the same" if same else "another"
            print(markdown_row([f"Ray nodes: {nodes}", *cells]), flush=True)


def _frames() -> Iterator[tuple[str, int, Any]]:
    for k in count():
        small = cv2.resize(scene(k // 40, k), (320, 240), interpolation=cv2.INTER_NEAREST)
        stamp = k * HALF_SECOND_NS
        yield "/camera/compressed", stamp, jpeg(np.asarray(small), stamp)


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for call in (speed, cluster):
        sub = commands.add_parser(call.__name__)
        sub.add_argument("flight")
        sub.add_argument("--teacher", required=True)
        sub.add_argument("--frames", type=int, default=30)
        sub.set_defaults(run=call)
    sub = commands.add_parser("memory")
    sub.add_argument("minutes", type=int, nargs="+")
    sub.set_defaults(run=memory)
    arguments = vars(parser.parse_args())
    arguments.pop("run")(**arguments)


if __name__ == "__main__":
    main()
