"""Cost of the node on this machine.

    python -m benchmarks.node [--only SECTION ...]

Writes benchmarks/node/*.csv and their rows in benchmarks/runs.csv; `make results` then writes
node.md. Nodes, cameras and bare loops are processes of their own; compared
variants alternate within one run, and ratios are of neighbours. The bare loop (letterbox,
inference, decode, no ROS) runs beside a camera that publishes to a null node, so that both sides
pay for the camera.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks import runs, yolo_ros
from benchmarks.rig import (
    Listener,
    bare_loop,
    camera,
    cpu_seconds,
    detector_node,
    driver,
    flight_video,
    isolate,
    node_command,
    null_node,
    process,
    resources,
)
from drone_kd.paths import default_model_path
from drone_kd.ros.pipeline import IDLE_SECONDS
from tiny_model import tiny_spec, write_fixed_model  # `benchmarks.rig` sets the path

SIZES = {"VGA": (640, 480), "720p": (1280, 720), "1080p": (1920, 1080), "4K": (3840, 2160)}
STAGES = ("transport", "wait", "decode", "prepare", "infer", "post", "publish", "total")
CAMERAS = (1, 2, 4, 8)
DETECTIONS = (0, 10, 100, 1000)
LOAD = 0.8
OVERLOAD = 3.0
RECORD_HZ = 5
CAMERA_HZ = 5.0
# Minute from which both models have been loaded once.
SWAPPED = 3
KNOWN = {"seeds": "none", "classes": "those of the model", "image_sizes": "camera: see the rows"}


class Bench:
    """The settings of a run, and its listener."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.model: Path = arguments.model
        self.rounds: int = arguments.rounds
        self.seconds: float = arguments.seconds
        self.overload_seconds: float = arguments.overload_seconds
        self.soak_minutes: float = arguments.soak_minutes
        self.listener = Listener([f"camera{number}" for number in range(max(CAMERAS))])
        self._throughput: dict[str, float] = {}

    @contextlib.contextmanager
    def flight(self, model: Path | None = None, /, **parameters: object) -> Iterator[int]:
        """Run the node and wait for its first detections; yields its process id."""
        self.listener.listen(0.5)  # drain messages of the previous node
        self.listener.restart()
        with detector_node(model or self.model, **parameters) as process:
            self.listener.wait_for_first()
            yield process.pid

    def wait(self) -> None:
        """Wait for the first detections of what has just been started."""
        self.listener.listen(0.5)  # drain messages of the previous node
        self.listener.restart()
        self.listener.wait_for_first()

    def hear(self, seconds: float) -> np.ndarray:
        """Return the latencies in ms of the detections that arrive within some seconds."""
        self.listener.restart()
        self.listener.listen(seconds)
        return np.array(self.listener.latencies_ms)

    def bare(self, size: tuple[int, int], camera_hz: float, rate_hz: float) -> list[float]:
        """Run the bare loop beside a camera and a null node."""
        with camera(*size, camera_hz), null_node():
            self.wait()
            return bare_loop(self.model, *size, rate_hz, self.seconds)

    def throughput(self, name: str) -> tuple[list[float], list[float]]:
        """Frames per second of the bare loop and of the node at saturation, per round."""
        size = SIZES[name]
        camera_hz = 2000 / np.median(bare_loop(self.model, *size, 0, min(self.seconds, 5)))
        bare, node = [], []
        for _ in range(self.rounds):
            bare.append(len(self.bare(size, camera_hz, 0)) / self.seconds)
            with camera(*size, camera_hz), self.flight():
                node.append(len(self.hear(self.seconds)) / self.seconds)
        self._throughput[name] = float(np.median(node))
        return bare, node

    def capacity(self, name: str) -> float:
        """Return the frames per second that the node can process."""
        if name not in self._throughput:
            self.throughput(name)
        return self._throughput[name]


Rows = Iterator[Sequence[object]]


def measure_throughput(bench: Bench) -> Rows:
    """Yield the throughput at saturation."""
    yield "camera", "bare loop (1/s)", "node (1/s)", "node / bare loop", "goal"
    for name, goal in (("720p", 0.90), ("1080p", 0.85)):
        bare, node = bench.throughput(name)
        ratios = np.divide(node, bare)
        yield name, spread(bare), spread(node), spread(ratios, 2), f"≥ {goal:.2f}"


def measure_latency(bench: Bench) -> Rows:
    """Yield the latency at 80 % load."""
    columns = "rate (Hz)", "null node", "bare loop", "node", "(node - null) / bare (goal ≤ 1.10)"
    yield "camera", *columns, "p99 / p50 of the node (goal ≤ 2)"
    for name in ("720p", "1080p"):
        size, rate_hz = SIZES[name], LOAD * bench.capacity(name)
        null, bare, node, tail = [], [], [], []
        for _ in range(bench.rounds):
            with camera(*size, rate_hz):
                with null_node():
                    bench.listener.restart()
                    bench.listener.wait_for_first()
                    null.append(np.median(bench.hear(bench.seconds)))
                with bench.flight():
                    latencies = bench.hear(bench.seconds)
                    node.append(np.median(latencies))
                    tail.append(np.percentile(latencies, 99) / np.median(latencies))
            bare.append(np.median(bench.bare(size, rate_hz, rate_hz)))
        ratio = np.divide(np.subtract(node, null), bare)
        cells = *map(spread, (null, bare, node)), spread(ratio, 2), spread(tail, 2)
        yield name, f"{rate_hz:.1f}", *cells


def measure_overload(bench: Bench) -> Rows:
    """Yield age and memory under overload."""
    columns = "camera (Hz)", "frames in", "published", "age p50, p99 (ms)", "inference p50 (ms)"
    yield "camera", *columns, "age p99 / inference (goal ≤ 2)", "memory at start, end (MB)"
    for name in ("720p", "1080p"):
        rate_hz = OVERLOAD * bench.capacity(name)
        with camera(*SIZES[name], rate_hz), bench.flight() as pid:
            bench.hear(min(10, bench.overload_seconds))
            before, *_ = resources(pid)
            ages = bench.hear(bench.overload_seconds)
            after, *_ = resources(pid)
        stats = bench.listener.stats["/detector: image"]
        infer = float(stats["infer p50 (ms)"])
        p50, p99 = np.percentile(ages, (50, 99))
        counts = f"{rate_hz:.0f}", stats["frames in"], stats["frames processed"]
        ages_text, memory = f"{p50:.0f}, {p99:.0f}", f"{before:.0f}, {after:.0f}"
        yield name, *counts, ages_text, f"{infer:.0f}", f"{p99 / infer:.2f}", memory


def measure_steps(bench: Bench) -> Rows:
    """Yield the cost per step of the node."""
    yield "camera", *STAGES, "CPU per frame (ms)"
    for name, size in SIZES.items():
        with camera(*size, 5), bench.flight() as pid:
            yield steps_row(bench, name, pid, "image")
    for count in CAMERAS:
        names = [f"camera{number}" for number in range(count)]
        source = camera(*SIZES["VGA"], 8 / count, *(f"{name}/image" for name in names))
        with source, bench.flight(cameras=f"[{', '.join(names)}]") as pid:
            yield steps_row(bench, f"VGA, cameras: {count}", pid, "camera0")
    with tempfile.TemporaryDirectory() as folder:
        for count in DETECTIONS:
            flight = bench.flight(model_that_finds(count, Path(folder)), max_detections=1000)
            with camera(*SIZES["VGA"], 10), flight as pid:
                row = steps_row(bench, f"VGA, detections: {count}", pid, "image")
            if set(bench.listener.found) != {count}:
                raise RuntimeError(f"{set(bench.listener.found)} detections instead of {count}")
            yield row


def steps_row(bench: Bench, name: str, pid: int, camera_name: str) -> list[object]:
    """Measure a running flight; returns its row of the table."""
    bench.hear(2)
    cpu = cpu_seconds(pid)
    frames = len(bench.hear(max(bench.seconds, 5)))
    cpu = (cpu_seconds(pid) - cpu) / max(frames, 1) * 1e3
    stats = bench.listener.stats[f"/detector: {camera_name}"]
    times = [stats[f"{stage} p50 (ms)"] for stage in STAGES]
    return [name, *times, f"{cpu:.1f}"]


def model_that_finds(count: int, folder: Path) -> Path:
    """Write a model that returns a fixed number of small boxes for each image."""
    rows = np.zeros((1, max(count, 1), 6))
    index = np.arange(count)
    x, y = index % 64, 8 + index // 64  # above it is the padding of a VGA frame
    rows[0, :count] = np.stack([x, y, x + 1, y + 1, np.full(count, 0.9), index % 2], axis=1)
    return write_fixed_model(folder / f"{count}.onnx", rows, tiny_spec(head="end2end"))


def measure_soak(bench: Bench) -> Rows:
    """Yield memory and threads over a long flight with model swaps."""
    minutes = bench.soak_minutes
    columns = "minute", "resident memory (MB)", "threads", "open files", "results"
    yield *columns, "longest gap (ms)", f"since minute {SWAPPED} (goal ≤ 1 %)"
    with tempfile.TemporaryDirectory() as folder:
        models = [Path(folder) / name for name in ("a.onnx", "b.onnx")]
        for model in models:
            shutil.copy(bench.model, model)
        series: list[float] = []
        with camera(*SIZES["720p"], 15), bench.flight(models[0]) as pid:
            for minute in range(1, round(minutes) + 1):
                frames = len(bench.hear(60))
                memory, threads, files = resources(pid)
                series.append(memory)
                growth = memory / series[min(minute, SWAPPED) - 1] - 1
                gap_ms = 1e3 * np.diff(bench.listener.arrivals).max()
                counts = threads, files, frames
                yield minute, f"{memory:.1f}", *counts, f"{gap_ms:.0f}", f"{100 * growth:+.1f} %"
                bench.listener.set_parameter("model", str(models[minute % 2]))


def measure_start(bench: Bench) -> Rows:
    """Yield the time until the first detections."""
    yield "first detections after (s; goal ≤ 2.5)", "memory after 10 s (MB; goal ≤ 250)"
    seconds, memory = [], []
    with camera(*SIZES["720p"], 15):
        bench.hear(5)
        for _ in range(bench.rounds):
            start = time.monotonic()
            with bench.flight() as pid:
                seconds.append(time.monotonic() - start)
                bench.hear(10)
                memory.append(resources(pid)[0])
    yield spread(seconds, 2), spread(memory)


def measure_idle(bench: Bench) -> Rows:
    """Yield the processor time without a subscriber."""
    yield "camera", "processor time (% of a core; goal ≤ 2)"
    # The listener subscribes to no camera of this name.
    source = camera(*SIZES["1080p"], 30, "idle/image")
    with source, detector_node(bench.model, cameras="[idle]") as node:
        bench.hear(3 * IDLE_SECONDS)
        shares = []
        for _ in range(bench.rounds):
            before = cpu_seconds(node.pid)
            bench.hear(bench.seconds)
            shares.append(100 * (cpu_seconds(node.pid) - before) / bench.seconds)
    yield "1080p, 30 Hz", spread(shares)


def measure_record(bench: Bench) -> Rows:
    """Yield the cost of recording hard frames."""
    latency_columns = "p50 off (ms)", "p50 on (ms)", "on / off (goal ≤ 1.05)", "p99 on / off"
    yield (
        *("camera, format", "frames/min", *latency_columns, "CPU per frame off (ms)"),
        *("CPU on / off", "kept, skipped", "MB"),
    )
    for name, format_, per_minute in (("720p", "jpeg", 30.0), ("1080p", "raw", 120.0)):
        p50: dict[bool, list[float]] = {False: [], True: []}
        p99: dict[bool, list[float]] = {False: [], True: []}
        cost: dict[bool, list[float]] = {False: [], True: []}
        kept, missed, written = 0, 0, 0.0
        with tempfile.TemporaryDirectory() as folder:
            settings: dict[str, object] = {
                "record_directory": folder,
                "record_format": format_,
                "record_per_minute": per_minute,
                "record_random": 1.0,
                "record_budget_mb": 500.0,
            }
            with camera(*SIZES[name], RECORD_HZ), bench.flight(None, **settings) as pid:
                bench.hear(5)
                for number in range(bench.rounds):
                    # The order alternates, so that a machine that slows down favours neither.
                    for on in (number % 2 == 0, number % 2 == 1):
                        bench.listener.record(on)
                        bench.hear(1)
                        before = cpu_seconds(pid)
                        latencies = bench.hear(bench.seconds)
                        cost[on].append(1e3 * (cpu_seconds(pid) - before) / len(latencies))
                        p50[on].append(np.median(latencies))
                        p99[on].append(np.percentile(latencies, 99))
                        if on:
                            stats = bench.listener.stats["/detector: record"]
                            kept += int(stats["frames kept"])
                            missed += int(stats["frames dropped"])
                            written += float(stats["written (MB)"])
                            bench.listener.record(False)
                            bench.hear(1)
        slower, tail, dearer = (
            spread(np.divide(each[True], each[False]), 2) for each in (p50, p99, cost)
        )
        latency = spread(p50[False]), spread(p50[True]), slower, tail
        counts = spread(cost[False]), dearer, f"{kept}, {missed}", f"{written:.0f}"
        yield f"{name} {format_}", f"{per_minute:g}", *latency, *counts


def measure_camera(bench: Bench) -> Rows:
    """Yield the latency of a camera in the detector's process, against one in its own."""
    columns = "rate (Hz)", "two processes (ms)", "one process (ms)", "difference (ms)"
    yield "camera", *columns, "CPU per frame, two (ms)", "one (ms)"
    with tempfile.TemporaryDirectory() as folder:
        # Its inference takes no time, so that the way of the frame is what differs.
        model = model_that_finds(10, Path(folder))
        for name in ("1080p", "4K"):
            video = flight_video(Path(folder) / f"{name}.avi", *SIZES[name], CAMERA_HZ)
            latency: dict[bool, list[float]] = {False: [], True: []}
            cost: dict[bool, list[float]] = {False: [], True: []}
            for number in range(bench.rounds):
                # The order alternates, so that a machine that slows down favours neither.
                for one in (number % 2 == 0, number % 2 == 1):
                    p50, cpu_ms = hear_camera(bench, model, video, one)
                    latency[one].append(p50)
                    cost[one].append(cpu_ms)
            saved = spread(np.subtract(latency[True], latency[False]))
            times = spread(latency[False]), spread(latency[True]), saved
            yield name, f"{CAMERA_HZ:g}", *times, spread(cost[False]), spread(cost[True])


def hear_camera(bench: Bench, model: Path, video: Path, one_process: bool) -> tuple[float, float]:
    """Return the median latency and the processor time per frame of all processes, in ms."""
    parameters: dict[str, object] = {"camera": str(video)} if one_process else {}
    with contextlib.ExitStack() as stack:
        pids = [] if one_process else [stack.enter_context(driver(video)).pid]
        pids.append(stack.enter_context(bench.flight(model, **parameters)))
        bench.hear(2)
        before = sum(map(cpu_seconds, pids))
        heard = bench.hear(bench.seconds)
        cpu_ms = 1e3 * (sum(map(cpu_seconds, pids)) - before) / len(heard)
    return float(np.median(heard)), cpu_ms


def measure_yolo_ros(bench: Bench) -> Rows:
    """Yield the comparison with yolo_ros."""
    columns = "frames per second at saturation", "age of those results p50, p99 (ms)"
    yield "node", *columns, "latency p50, p99 at 5 Hz (ms)", "memory (MB)"
    # Deferred: no other section needs torch.
    from drone_kd_training.export.export import export
    from drone_kd_training.models.checkpoints import PACKAGED_MODELS

    checkpoint = PACKAGED_MODELS / "demo-student.pt"
    folder = tempfile.TemporaryDirectory()
    exported, _ = export(checkpoint, Path(folder.name) / "model.onnx")
    settings = {"model": checkpoint, "device": "cpu", "threshold": 0.25, "iou": 0.7}
    theirs = [*node_command("benchmarks.yolo_ros", settings), "-r", "image_raw:=image"]
    nodes = {"yolo_ros": lambda: process(*theirs), "drone_kd": lambda: detector_node(exported)}
    rows: dict[str, tuple[list, list, list, list]] = {name: ([], [], [], []) for name in nodes}
    for _ in range(bench.rounds):
        for name, start in nodes.items():
            rates, ages, latencies, memory = rows[name]
            for camera_hz in (30, 5):
                with camera(*SIZES["720p"], camera_hz), start() as running:
                    bench.wait()
                    bench.hear(3)
                    heard = bench.hear(bench.seconds)
                    if camera_hz == 30:
                        rates.append(len(heard) / bench.seconds)
                        ages.append(np.percentile(heard, (50, 99)))
                    else:
                        latencies.append(np.percentile(heard, (50, 99)))
                        memory.append(resources(running.pid)[0])
    for name, (rates, ages, latencies, memory) in rows.items():
        both = (", ".join(f"{t:.0f}" for t in np.median(a, axis=0)) for a in (ages, latencies))
        yield name, spread(rates), *both, spread(memory, 0)


# Each yields the names of its columns, then its rows.
SECTIONS: dict[str, Callable[[Bench], Rows]] = {
    "throughput": measure_throughput,
    "latency": measure_latency,
    "overload": measure_overload,
    "steps": measure_steps,
    "start": measure_start,
    "idle": measure_idle,
    "soak": measure_soak,
    "record": measure_record,
    "camera": measure_camera,
    "yolo_ros": measure_yolo_ros,
}


def spread(values: Sequence[float] | np.ndarray, digits: int = 1) -> str:
    """Return the median, with minimum and maximum if there are several values."""
    text = f"{np.median(values):.{digits}f}"
    if len(values) > 1:
        text += f" ({min(values):.{digits}f} to {max(values):.{digits}f})"
    return text


def main() -> None:
    """Measure the sections and write their CSV files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=default_model_path())
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    checkout = "a checkout of yolo_ros to compare with"
    parser.add_argument("--yolo-ros", type=Path, metavar="DIR", help=checkout)
    parser.add_argument("--rounds", type=int, default=5, help="per comparison (%(default)s)")
    parser.add_argument("--seconds", type=float, default=12.0, help="per side (%(default)s)")
    parser.add_argument("--overload-seconds", type=float, default=60.0, metavar="S")
    parser.add_argument("--soak-minutes", type=float, default=5.0, metavar="M")
    parser.add_argument(
        "--output", type=Path, default=runs.FOLDER, help="folder of the CSV files (%(default)s)"
    )
    arguments = parser.parse_args()
    if arguments.yolo_ros is None:
        arguments.only = [name for name in arguments.only if name != "yolo_ros"]
    elif yolo_ros.ENVIRONMENT not in os.environ:
        yolo_ros.restart_with(arguments.yolo_ros.resolve())
    isolate()
    bench = Bench(arguments)
    try:
        for name in arguments.only:
            rows = SECTIONS[name](bench)
            columns = [str(column) for column in next(rows)]
            what = (SECTIONS[name].__doc__ or "").partition("Yield ")[2].rstrip(".")
            run = f"node/{name.replace('_', '-')}"
            result = runs.Result(run, what, columns, KNOWN, arguments.output)
            for row in rows:
                result.add(*row)
    finally:
        bench.listener.close()


if __name__ == "__main__":
    main()
