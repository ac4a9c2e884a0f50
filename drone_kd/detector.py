"""Picture in, detections out: the only place where letterbox, backend and decode meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np

from drone_kd.backends import LOG, Backend, open_backend
from drone_kd.config import default_model_path, parameter_defaults
from drone_kd.core.decode import decode
from drone_kd.core.detections import Detections
from drone_kd.core.preprocess import letterbox


class StageTimes(NamedTuple):
    """How long one picture took, in milliseconds."""

    letterbox_ms: float
    infer_ms: float
    decode_ms: float
    total_ms: float


@dataclass(frozen=True)
class Detector:
    """A model with its thresholds.

    Attributes:
        backend: the loaded model.
        confidence: scores must be greater than this, 0 to 1.
        iou: boxes of one class that overlap more are one object, 0 to 1; dense heads only.
        max_detections: keep at most this many per picture, best first.

    Raises:
        ValueError: a threshold is out of its range.
    """

    backend: Backend
    confidence: float
    iou: float
    max_detections: int

    def __post_init__(self) -> None:
        for name in ("confidence", "iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected 0 to 1, got {getattr(self, name)}")
        if self.max_detections < 1:
            raise ValueError(f"max_detections: expected at least 1, got {self.max_detections}")

    def __call__(self, image: np.ndarray) -> Detections:
        """Detect in one picture; see `timed`."""
        return self.timed(image)[0]

    def timed(self, image: np.ndarray) -> tuple[Detections, StageTimes]:
        """Detect in one picture and measure each stage.

        Args:
            image: uint8 (h, w, 3) in BGR order; rows may be strided.

        Returns:
            Detections in pixels of `image`, best first, and the times.

        Raises:
            ValueError: `image` has another dtype or shape, or no pixels.
            InferenceError: the network gave no usable answer.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                f"image: expected uint8 (height, width, 3), got {image.dtype} {image.shape}"
            )
        spec = self.backend.spec
        start = perf_counter()
        canvas, placement = letterbox(image, spec.input_width, spec.input_height)
        letterboxed = perf_counter()
        # One picture, as often as the model takes frames at once; no copy where that is one.
        output = self.backend.infer(np.broadcast_to(canvas, (spec.batch, *canvas.shape)))
        inferred = perf_counter()
        detections = decode(
            output[0],
            spec,
            placement,
            image.shape,
            self.confidence,
            self.iou,
            self.max_detections,
        )
        decoded = perf_counter()
        return detections, StageTimes(
            letterbox_ms=(letterboxed - start) * 1e3,
            infer_ms=(inferred - letterboxed) * 1e3,
            decode_ms=(decoded - inferred) * 1e3,
            total_ms=(decoded - start) * 1e3,
        )


def load_detector(
    path: str | Path | None = None,
    *,
    confidence: float | None = None,
    iou: float | None = None,
    max_detections: int | None = None,
    runtime: str | None = None,
    allow_fallback: bool | None = None,
    progress: Callable[[str], None] = LOG.warning,
) -> Detector:
    """Load a model; what is not given comes from config/detector.yaml.

    Args:
        path: a model.onnx; None: the model that comes with the package.
        confidence, iou, max_detections: see `Detector`.
        runtime, allow_fallback, progress: see `open_backend`.

    Raises:
        ModelError: the file cannot be used; the message is one line.
        ValueError: a threshold is out of its range.
    """
    defaults = parameter_defaults("detector.yaml")
    return Detector(
        open_backend(
            default_model_path() if path is None else path,
            runtime=defaults["runtime"] if runtime is None else runtime,
            allow_fallback=(
                defaults["allow_fallback"] if allow_fallback is None else allow_fallback
            ),
            progress=progress,
        ),
        defaults["confidence"] if confidence is None else confidence,
        defaults["iou"] if iou is None else iou,
        defaults["max_detections"] if max_detections is None else max_detections,
    )
