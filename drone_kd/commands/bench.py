"""drone-kd bench: the latency of preprocessing, inference and postprocessing."""

from __future__ import annotations

import argparse

import cv2
import numpy as np

from drone_kd.backends.golden import read_golden, reproduce
from drone_kd.backends.model_file import read_model_file
from drone_kd.commands.shared_options import add_measurement, add_model, add_runtime, show_progress
from drone_kd.detector import Detector, StageTimes, load_detector
from drone_kd.machine import machine_name
from drone_kd.media.image_files import read_image
from drone_kd.paths import default_model_path
from drone_kd.progress import track

_WARM_UP_FRAMES = 5


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model(parser)
    add_measurement(
        parser, "number of measured runs", "image to use (default: 1280x720 pixels of noise)"
    )
    add_runtime(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print p50 and p95 of each stage in milliseconds; 1: golden images are off."""
    file = read_model_file(arguments.model or default_model_path())
    detector = load_detector(file, runtime=arguments.runtime, progress=show_progress)
    if arguments.image is None:
        image = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), dtype=np.uint8)
    else:
        image = read_image(arguments.image)
    percentiles = stage_percentiles(detector, image, arguments.frames, (50, 95))

    spec = detector.backend.spec
    golden = read_golden(file.metadata, spec)
    found = reproduce(detector.backend, golden) if golden else None
    print(f"machine   {machine_name()}")
    print(f"runtime   {detector.backend.name}, OpenCV {cv2.__version__}, numpy {np.__version__}")
    print(f"model     {spec.input_width}x{spec.input_height}, {len(spec.classes)} classes")
    print(f"image     {image.shape[1]}x{image.shape[0]}, {len(detector(image))} detections")
    print(f"golden    {found or 'none in the model'}")
    print(f"frames    {arguments.frames}")
    print(f"{'ms':<10}{'p50':>8}{'p95':>8}")
    for stage, (p50, p95) in percentiles.items():
        print(f"{stage:<10}{p50:>8.2f}{p95:>8.2f}")
    return 0 if found is None or found.holds else 1


def stage_percentiles(
    detector: Detector, image: np.ndarray, frames: int, percentiles: tuple[int, ...]
) -> dict[str, list[float]]:
    """Warm up, run one image `frames` times and return percentiles of each stage in milliseconds.

    The stages are "letterbox", "infer", "decode" and "total".
    """
    for _ in range(_WARM_UP_FRAMES):
        detector(image)
    times = np.array([detector.timed(image)[1] for _ in track(range(frames), "Measure", "frame")])
    return {
        stage.removesuffix("_ms"): np.percentile(column, percentiles).tolist()
        for stage, column in zip(StageTimes._fields, times.T, strict=True)
    }
