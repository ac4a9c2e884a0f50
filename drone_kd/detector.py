"""Detector: from an image to detections, through preprocessing, a backend and postprocessing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import NamedTuple, TypeVar

import numpy as np

from drone_kd.backends import LOG, Backend, open_backend
from drone_kd.backends.model_file import ModelFile
from drone_kd.core.arrays import Float32Array, Int64Array, UInt8Array
from drone_kd.core.detections import Detections
from drone_kd.core.postprocess import InferenceError, decode
from drone_kd.core.preprocess import Letterbox, letterbox
from drone_kd.core.tiling import OFF, merge, parse_tiling, windows
from drone_kd.paths import default_model_path, parameter_defaults

T = TypeVar("T")


class DecodedImage(NamedTuple):
    """Image to run the detector on, decoded in full or at a reduced scale."""

    image: UInt8Array  # (h, w, 3) BGR; rows may be strided
    width: int  # of the original in pixels; boxes are in these pixels
    height: int
    reduction: int = 1  # pixels of the original per pixel of `image`


class StageTimes(NamedTuple):
    """Time per stage for a batch of images, in milliseconds."""

    letterbox_ms: float
    infer_ms: float
    decode_ms: float
    total_ms: float


@dataclass(frozen=True)
class Detector:
    """Model with its settings.

    ValueError: a setting is out of its range, or names a class that the model lacks.
    """

    backend: Backend
    confidence: float  # scores must be above this, 0 to 1
    iou: float  # NMS threshold, 0 to 1; dense heads only
    max_detections: int  # per image, best first
    class_confidence: Mapping[str, float] = field(default_factory=dict)  # own thresholds
    only: tuple[str, ...] = ()  # class names to report; empty: all
    tiling: str = OFF  # "off", "auto" or "RxC": also run on tiles of large images
    tile_overlap: float = 0.0  # of neighbouring tiles, as a share of a tile, 0 to 0.5

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
                classes = ", ".join(known)
                raise ValueError(f"the model knows no class {name!r}; its classes: {classes}")

    def __call__(self, image: UInt8Array) -> Detections:
        """Detect objects in one image; see `timed`."""
        return self.timed(image)[0]

    def timed(self, image: UInt8Array) -> tuple[Detections, StageTimes]:
        """Detect objects in one image and measure each stage.

        The image is (h, w, 3) BGR, its rows may be strided; detections are in its pixels, best
        first.

        Raises:
            ValueError: `image` has another dtype or shape, or no pixels.
            InferenceError: inference failed, or the output breaks the model's contract.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                f"image: expected uint8 (height, width, 3), got {image.dtype} {image.shape}"
            )
        height, width = image.shape[:2]
        whole = DecodedImage(image, width, height)
        (result,), times = self.batch([whole], [self.windows(width, height)])
        if isinstance(result, InferenceError):
            raise result
        return result, times

    def windows(self, width: int, height: int) -> Int64Array:
        """Return the windows of an image that the network runs on; see `tiling.windows`."""
        spec, tiling = self.backend.spec, parse_tiling(self.tiling)
        size = spec.input_width, spec.input_height
        return windows(width, height, tiling, self.tile_overlap, *size)

    def batch(
        self, images: Sequence[DecodedImage], windows: Sequence[Int64Array]
    ) -> tuple[list[Detections | InferenceError], StageTimes]:
        """Detect objects in several images, with as many per inference as the model takes.

        Args:
            images: one or more.
            windows: per image (N, 4) in pixels; several only for an image that is not reduced.

        Returns:
            Per image, detections in pixels of the original, best first, or the error; and the
            times for all images together.
        """
        spec = self.backend.spec
        start = perf_counter()
        crops = [
            image.image[y1:y2, x1:x2] if len(areas) > 1 else image.image
            for image, areas in zip(images, windows, strict=True)
            for x1, y1, x2, y2 in areas.tolist()
        ]
        inputs = [letterbox(crop, spec.input_width, spec.input_height) for crop in crops]
        letterboxed = perf_counter()
        rows = self._infer([canvas for canvas, _ in inputs])
        inferred = perf_counter()

        results: list[Detections | InferenceError] = []
        first = 0
        thresholds = self._thresholds()
        for image, areas in zip(images, windows, strict=True):
            last = first + len(areas)
            try:
                detections = [
                    self._decode(rows[i], inputs[i][1], crops[i], thresholds)
                    for i in range(first, last)
                ]
                results.append(self._combine(detections, areas, image))
            except InferenceError as error:
                results.append(error)
            first = last
        decoded = perf_counter()
        return results, StageTimes(
            letterbox_ms=(letterboxed - start) * 1e3,
            infer_ms=(inferred - letterboxed) * 1e3,
            decode_ms=(decoded - inferred) * 1e3,
            total_ms=(decoded - start) * 1e3,
        )

    def _infer(self, canvases: list[UInt8Array]) -> list[Float32Array | InferenceError]:
        """Return the (K, 6) rows of every canvas, or the error."""
        size = self.backend.spec.batch
        rows: list[Float32Array | InferenceError] = []
        for first in range(0, len(canvases), size):
            chunk = canvases[first : first + size]
            # The rows of the frames that fill up the batch are ignored.
            filled = chunk + chunk[-1:] * (size - len(chunk))
            try:
                output = self.backend.infer(filled[0][None] if size == 1 else np.stack(filled))
                rows += list(output[: len(chunk)])
            except InferenceError as error:
                rows += [error] * len(chunk)
        return rows

    def _decode(
        self,
        rows: Float32Array | InferenceError,
        placement: Letterbox,
        crop: UInt8Array,
        thresholds: Float32Array,
    ) -> Detections:
        if isinstance(rows, InferenceError):
            raise rows
        spec, limits = self.backend.spec, (self.iou, self.max_detections)
        return decode(rows, spec, placement, crop.shape, thresholds, *limits)

    def _combine(
        self, detections: list[Detections], areas: Int64Array, image: DecodedImage
    ) -> Detections:
        """Return the detections of all windows in pixels of the original image."""
        if len(detections) > 1:
            return merge(detections, areas, image.width, image.height, self.max_detections)
        if image.reduction == 1:
            return detections[0]
        limit = np.array([image.width, image.height] * 2, np.float32)
        xyxy = np.minimum(detections[0].xyxy * np.float32(image.reduction), limit)
        return replace(detections[0], xyxy=xyxy)

    def _thresholds(self) -> Float32Array:
        """Return the confidence threshold of each class: float32 (classes,)."""
        classes = self.backend.spec.classes
        reported = self.only or classes
        chosen = {name: self.class_confidence.get(name, self.confidence) for name in reported}
        # No score is above 1.
        return np.array([chosen.get(name, 1.0) for name in classes], np.float32)


def load_detector(
    path: str | Path | ModelFile | None = None,
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
    may_build: bool | None = None,
    progress: Callable[[str], None] = LOG.warning,
) -> Detector:
    """Load a model.onnx, or one that `read_model_file` has read; None: that of the package.

    Settings are those of `Detector` and `open_backend`. Where they are None, they come from
    config/detector.yaml.

    Raises:
        ModelError: the file is unusable; the message is one line.
        ValueError: a setting is out of its range, or names a class that the model lacks.
    """
    defaults = parameter_defaults("detector.yaml")

    def setting(name: str, value: T | None) -> T:
        chosen: T = defaults[name] if value is None else value
        return chosen

    backend = open_backend(
        default_model_path() if path is None else path,
        runtime=setting("runtime", runtime),
        allow_fallback=setting("allow_fallback", allow_fallback),
        may_build=setting("may_build", may_build),
        progress=progress,
    )
    return Detector(
        backend,
        confidence=setting("confidence", confidence),
        iou=setting("iou", iou),
        max_detections=setting("max_detections", max_detections),
        class_confidence=class_confidence or {},
        only=tuple(only),
        tiling=setting("tiling", tiling),
        tile_overlap=setting("tile_overlap", tile_overlap),
    )
