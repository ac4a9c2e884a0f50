"""Latency of a detector, stage by stage."""

from __future__ import annotations

import numpy as np

from drone_kd.detector import Detector, StageTimes
from drone_kd.progress import track

_WARM_UP_FRAMES = 5


def stage_percentiles(
    detector: Detector, image: np.ndarray, frames: int, percentiles: tuple[int, ...]
) -> dict[str, list[float]]:
    """Run one image repeatedly and return percentiles of each stage.

    Args:
        detector: what is measured.
        image: uint8 (h, w, 3) BGR.
        frames: number of measured runs, after a few to warm up.
        percentiles: which, e.g. (50, 95).

    Returns:
        Stage ("letterbox", "infer", "decode", "total") to milliseconds, one for each percentile.

    Raises:
        InferenceError: the network gave no usable output.
    """
    for _ in range(_WARM_UP_FRAMES):
        detector(image)
    times = np.array([detector.timed(image)[1] for _ in track(range(frames), "Measure", "frame")])
    return {
        stage.removesuffix("_ms"): np.percentile(column, percentiles).tolist()
        for stage, column in zip(StageTimes._fields, times.T, strict=True)
    }
