"""Work of a detection thread on some frames, which ends what takes too long."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import monotonic, strftime

from drone_kd.backends import Backend
from drone_kd.core.arrays import Float32Array, UInt8Array
from drone_kd.core.model_spec import ModelSpec
from drone_kd.core.postprocess import InferenceError
from drone_kd.ros.inbox import Frame
from drone_kd.ros.model_loader import Model, cancel_inference

# An inference that takes longer is cancelled: no model that is of use in flight does.
LIMIT_SECONDS = 10.0
# A cancelled inference that takes longer than this in addition hangs: ONNX Runtime looks at the
# flag between two operators only, and TensorRT has none.
GRACE_SECONDS = 2.0


class AbandonedError(BaseException):
    """Another thread works in place of this one, which must not publish anything."""


class Work:
    """Frames in work, and the model that runs on them, as a `Backend` that can be cancelled.

    Attributes:
        hangs: an inference does not end although it was cancelled; see `check`.
        ended: the thread is done with the frames.
    """

    spec: ModelSpec
    name: str
    fallback: str

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames = frames
        self.model: Model | None = None
        self.hangs = self.ended = False
        self._began: float | None = None  # of the inference that runs
        self._started = ""  # the same as a time of day
        self._lock = threading.Lock()
        self._cancelled: float | None = None

    def use(self, model: Model) -> Work:
        """Run this model from now on; return itself."""
        backend = model.backend
        self.spec, self.name, self.fallback = backend.spec, backend.name, backend.fallback
        with self._lock:
            self.model, self._cancelled = model, None
        return self

    @property
    def backend(self) -> Backend:
        """The model's own backend."""
        assert self.model is not None
        return self.model.backend

    def infer(self, batch: UInt8Array) -> Float32Array:
        """Run a batch; see `Backend.infer`. InferenceError: also after a cancellation."""
        with self._lock:
            if self._cancelled is not None:
                raise InferenceError("cancelled")
            self._began, self._started = monotonic(), strftime("%H:%M:%S")
        try:
            return self.backend.infer(batch)
        finally:
            self._began = None
            self.hangs = False

    def cancel(self) -> None:
        """End the inference that runs, if any, and let no other one begin."""
        with self._lock:
            if self._cancelled is None:
                self._cancelled = monotonic()
            model = self.model
        if model is not None:
            cancel_inference(model.backend)

    def check(self) -> bool:
        """Cancel an inference that takes too long; return whether one hangs."""
        now, began, cancelled = monotonic(), self._began, self._cancelled
        if began is None:
            return False
        if cancelled is None:
            if now - began >= LIMIT_SECONDS:
                self.cancel()
        elif now - cancelled >= GRACE_SECONDS:
            self.hangs = True
        return self.hangs

    def is_in_inference(self) -> bool:
        """Return whether an inference runs."""
        return self._began is not None

    def __str__(self) -> str:
        name = self.model.path.name if self.model is not None else "a model"
        return f"an inference of {name} hangs since {self._started} and cannot be ended"
