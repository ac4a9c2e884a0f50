"""Picture in, detections out: the only place where letterbox, backend and decode meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np

from drone_kd.backends import LOG, Backend, open_backend
from drone_kd.core.detections import Detections
from drone_kd.core.postprocess import InferenceError, decode
from drone_kd.core.preprocess import Letterbox, letterbox
from drone_kd.core.tiling import OFF, merge, parse_tiling, windows
from drone_kd.paths import default_model_path, parameter_defaults


class Picture(NamedTuple):
    """A picture on its way to the network, perhaps at a reduced scale.

    Attributes:
        image: uint8 (h, w, 3) in BGR order; rows may be strided.
        width, height: of the original in pixels; boxes are in these pixels.
        reduction: the original's pixels per pixel of `image`.
    """

    image: np.ndarray
    width: int
    height: int
    reduction: int = 1


class StageTimes(NamedTuple):
    """How long a batch of pictures took, in milliseconds."""

    letterbox_ms: float
    infer_ms: float
    decode_ms: float
    total_ms: float


@dataclass(frozen=True)
class Detector:
    """A model with its settings.

    Attributes:
        backend: the loaded model.
        confidence: scores must be greater than this, 0 to 1.
        iou: boxes of one class that overlap more are one object, 0 to 1; dense heads only.
        max_detections: keep at most this many per picture, best first.
        class_confidence: class name to the score that its detections must exceed instead.
        only: class names to report; empty: all.
        tiling: "off", "auto" or "RxC": large pictures are seen whole and in tiles.
        tile_overlap: of neighbouring tiles, as a share of a tile, 0 to 0.5.

    Raises:
        ValueError: a setting is out of its range, or names a class that the model lacks.
    """

    backend: Backend
    confidence: float
    iou: float
    max_detections: int
    class_confidence: Mapping[str, float] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    tiling: str = OFF
    tile_overlap: float = 0.0

    def __post_init__(self) -> None:
        for name, limit in (("confidence", 1), ("iou", 1), ("tile_overlap", 0.5)):
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"{name}: expected 0 to {limit}, got {getattr(self, name)}")
        if self.max_detections < 1:
            raise ValueError(f"max_detections: expected at least 1, got {self.max_detections}")
        parse_tiling(self.tiling)
        known = self.backend.spec.classes
        for name in (*self.class_confidence, *self.only):
            if name not in known:
                raise ValueError(
                    f"the model knows no class {name!r}; its classes: {', '.join(known)}"
                )

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
        height, width = image.shape[:2]
        (found,), times = self.batch(
            [Picture(image, width, height)], [self.windows(width, height)]
        )
        if isinstance(found, InferenceError):
            raise found
        return found, times

    def windows(self, width: int, height: int) -> np.ndarray:
        """Return what the network is to see of a picture; see `tiling.windows`."""
        spec = self.backend.spec
        return windows(
            width,
            height,
            parse_tiling(self.tiling),
            self.tile_overlap,
            spec.input_width,
            spec.input_height,
        )

    def batch(
        self, pictures: Sequence[Picture], seen: Sequence[np.ndarray]
    ) -> tuple[list[Detections | InferenceError], StageTimes]:
        """Detect in several pictures, as many at a time as the model takes.

        Args:
            pictures: one or more.
            seen: per picture its windows, int64 (N, 4) in pixels; more than the first one only
                for a picture that is not reduced.

        Returns:
            Per picture, detections in pixels of the original, best first, or why there are none;
            and how long all of them took.
        """
        spec = self.backend.spec
        start = perf_counter()
        crops = [
            picture.image[y1:y2, x1:x2] if len(areas) > 1 else picture.image
            for picture, areas in zip(pictures, seen, strict=True)
            for x1, y1, x2, y2 in areas.tolist()
        ]
        boxed = [letterbox(crop, spec.input_width, spec.input_height) for crop in crops]
        letterboxed = perf_counter()
        rows = self._infer([canvas for canvas, _ in boxed])
        inferred = perf_counter()

        found, first = [], 0
        thresholds = self._thresholds()
        for picture, areas in zip(pictures, seen, strict=True):
            mine = slice(first, first + len(areas))
            first += len(areas)
            try:
                parts = [
                    self._decode(output, placement, crop, thresholds)
                    for output, (_, placement), crop in zip(
                        rows[mine], boxed[mine], crops[mine], strict=True
                    )
                ]
            except InferenceError as error:
                found.append(error)
                continue
            if len(parts) > 1:
                found.append(
                    merge(parts, areas, picture.width, picture.height, self.max_detections)
                )
            else:
                found.append(_enlarge(parts[0], picture))
        decoded = perf_counter()
        return found, StageTimes(
            letterbox_ms=(letterboxed - start) * 1e3,
            infer_ms=(inferred - letterboxed) * 1e3,
            decode_ms=(decoded - inferred) * 1e3,
            total_ms=(decoded - start) * 1e3,
        )

    def _infer(self, canvases: list[np.ndarray]) -> list[np.ndarray | InferenceError]:
        """Return the (K, 6) rows of every canvas, or why there are none."""
        size = self.backend.spec.batch
        rows: list[np.ndarray | InferenceError] = []
        for first in range(0, len(canvases), size):
            chunk = canvases[first : first + size]
            # What fills up the batch is ignored.
            filled = chunk + chunk[-1:] * (size - len(chunk))
            try:
                output = self.backend.infer(filled[0][None] if size == 1 else np.stack(filled))
                rows += list(output[: len(chunk)])
            except InferenceError as error:
                rows += [error] * len(chunk)
        return rows

    def _decode(
        self,
        rows: np.ndarray | InferenceError,
        placement: Letterbox,
        crop: np.ndarray,
        thresholds: np.ndarray,
    ) -> Detections:
        if isinstance(rows, InferenceError):
            raise rows
        return decode(
            rows,
            self.backend.spec,
            placement,
            crop.shape,
            thresholds,
            self.iou,
            self.max_detections,
        )

    def _thresholds(self) -> np.ndarray:
        """Return the score that each class must exceed: float32 (classes,)."""
        names = self.backend.spec.classes
        return np.array(
            [
                self.class_confidence.get(name, self.confidence)
                if not self.only or name in self.only
                else 1.0  # no score is greater
                for name in names
            ],
            np.float32,
        )


def _enlarge(found: Detections, picture: Picture) -> Detections:
    """Take boxes from a reduced picture to the original."""
    if picture.reduction == 1:
        return found
    limit = np.array([picture.width, picture.height] * 2, np.float32)
    return replace(found, xyxy=np.minimum(found.xyxy * np.float32(picture.reduction), limit))


def load_detector(
    path: str | Path | None = None,
    *,
    confidence: float | None = None,
    iou: float | None = None,
    max_detections: int | None = None,
    class_confidence: Mapping[str, float] | None = None,
    only: Sequence[str] = (),
    tiling: str | None = None,
    tile_overlap: float | None = None,
    runtime: str | None = None,
    allow_fallback: bool | None = None,
    progress: Callable[[str], None] = LOG.warning,
) -> Detector:
    """Load a model; what is not given comes from config/detector.yaml.

    Args:
        path: a model.onnx; None: the model that comes with the package.
        confidence, iou, max_detections, class_confidence, only, tiling, tile_overlap: see
            `Detector`.
        runtime, allow_fallback, progress: see `open_backend`.

    Raises:
        ModelError: the file cannot be used; the message is one line.
        ValueError: a setting is out of its range, or names a class that the model lacks.
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
        confidence=defaults["confidence"] if confidence is None else confidence,
        iou=defaults["iou"] if iou is None else iou,
        max_detections=defaults["max_detections"] if max_detections is None else max_detections,
        class_confidence=class_confidence or {},
        only=tuple(only),
        tiling=defaults["tiling"] if tiling is None else tiling,
        tile_overlap=defaults["tile_overlap"] if tile_overlap is None else tile_overlap,
    )
