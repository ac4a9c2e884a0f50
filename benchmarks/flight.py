"""What ROS adds to the detector: python -m benchmarks.flight [--model MODEL.onnx]

Flights of the detector and camera nodes (two processes, DDS on this machine) alternate with the
detector alone on the same frames, in one run on one machine; printed are the frames that came
through, and the node's latency as a ratio of the detector's.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from drone_kd.config import default_model_path
from drone_kd.detector import load_detector
from drone_kd.scene import fly as fly_scene
from training.fly import fly

ROUNDS = 3
SECONDS = 15.0
FRAMES = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=default_model_path())
    parser.add_argument("--rate", type=float, default=10.0, help="of the camera, Hz (%(default)s)")
    arguments = parser.parse_args()
    ratios = []
    for number in range(ROUNDS):
        alone = _detector_alone(arguments.model)
        with tempfile.TemporaryDirectory() as folder:
            flight = fly(arguments.model, "", Path(folder), SECONDS, arguments.rate)
        ratios.append(flight["latency_p50_ms"] / alone)
        print(
            f"round {number + 1}: detector alone p50 {alone:.1f} ms; flight: "
            f"{flight['frames_in']} frames in, {flight['frames_out']} out, "
            f"p50 {flight['latency_p50_ms']:.1f} ms, p95 {flight['latency_p95_ms']:.1f} ms",
            flush=True,
        )
    print(f"flight / detector alone, p50: {np.median(ratios):.2f} ({ROUNDS} rounds)")


def _detector_alone(model: Path) -> float:
    """Median milliseconds from a frame to its detections, at the same rate of frames."""
    detector = load_detector(model)
    flight = fly_scene(0, 1280, 720, fps=10.0)
    times = []
    for _ in range(FRAMES):
        frame = next(flight)
        started = time.perf_counter()
        detector(frame.image)
        times.append(1000 * (time.perf_counter() - started))
    return float(np.median(times[5:]))


if __name__ == "__main__":
    main()
