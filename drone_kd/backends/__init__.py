"""Runtimes that execute a model file."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from drone_kd.core.model_spec import ModelError, ModelSpec

RUNTIMES = ("auto", "tensorrt", "onnxruntime")

LOG = logging.getLogger("drone_kd")
_ENGINE_SUFFIXES = (".engine", ".plan", ".trt")


class Backend(Protocol):
    """A loaded model.

    Attributes:
        spec: what the model file says of itself.
        name: runtime, its version and its device, for people.
        fallback: why this is not TensorRT though it should be; empty otherwise.
    """

    spec: ModelSpec
    name: str
    fallback: str

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Run a full batch.

        Args:
            batch: uint8 (B, H, W, 3) BGR of the network's size, where B is `spec.batch`; who has
                fewer frames fills the rest with anything and ignores its rows.

        Returns:
            float32 (B, K, 6); see `ModelSpec`.

        Raises:
            InferenceError: the runtime failed.
        """


def open_backend(
    path: str | Path,
    *,
    runtime: str = "auto",
    allow_fallback: bool = False,
    may_build: bool = True,
    progress: Callable[[str], None] = LOG.warning,
) -> Backend:
    """Load a model file; with TensorRT, after building its engine if there is no valid one.

    Args:
        path: a model.onnx that describes itself.
        runtime: "tensorrt", "onnxruntime", or "auto": TensorRT where it is installed.
        allow_fallback: where TensorRT was chosen and fails, ONNX Runtime serves instead; this is
            said to `progress` and in the backend's name.
        may_build: False for a model that is loaded in flight: a build takes the GPU for minutes,
            so TensorRT then serves only where the engine is already there.
        progress: gets lines of text, of a build every few seconds.

    Raises:
        ModelError: the file cannot be used, or not with this runtime; the message is one line.
    """
    path = Path(path)
    if runtime not in RUNTIMES:
        raise ModelError(f"runtime: expected {' or '.join(RUNTIMES)}, got {runtime!r}")
    if path.suffix in _ENGINE_SUFFIXES:
        raise ModelError(
            f"{path}: engines made elsewhere (trtexec, Ultralytics) are not accepted: an engine "
            "runs native code when it is loaded, fits one TensorRT and one GPU, and does not say "
            "what it detects; give the model.onnx, drone-kd build makes its engine on this device"
        )
    if path.suffix != ".onnx":
        raise ModelError(f"{path}: expected a file that ends in .onnx")
    from drone_kd.backends.onnx_runtime import (  # deferred: imported when used
        OrtBackend,
        read_spec,
    )

    if runtime == "onnxruntime" or (runtime == "auto" and not tensorrt_is_installed()):
        return OrtBackend(path)
    spec = read_spec(path)
    try:
        try:
            from drone_kd.backends.tensorrt.build import (
                open_tensorrt,  # deferred: it imports TensorRT
            )
        except ImportError as error:
            raise ModelError(
                f"TensorRT cannot be imported ({error}): it comes with JetPack, as the package "
                "python3-libnvinfer, and a virtual environment sees it with --system-site-packages"
            ) from error
        return open_tensorrt(path, spec, may_build, progress)
    except ModelError as error:
        if not allow_fallback:
            hint = "; runtime onnxruntime, or allow_fallback, does without TensorRT"
            raise ModelError(f"{error}{hint if runtime == 'auto' else ''}") from error
        backend = OrtBackend(path, fallback=str(error))
        progress(f"TensorRT does not serve, ONNX Runtime does instead: {error}")
        return backend


def tensorrt_is_installed() -> bool:
    """Tell whether this Python finds TensorRT; whether it works is another matter."""
    return importlib.util.find_spec("tensorrt") is not None
