"""Backends: the runtimes that execute a model file."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from drone_kd.backends.model_file import ModelFile, read_model_file
from drone_kd.core.arrays import Float32Array, UInt8Array
from drone_kd.core.model_spec import ModelError, ModelSpec
from drone_kd.machine import l4t
from drone_kd.text import one_line

RUNTIMES = ("auto", "tensorrt", "onnxruntime")

_INSTALL_TENSORRT = (
    "apt install python3-libnvinfer; a virtual environment sees it with --system-site-packages"
)

LOG = logging.getLogger("drone_kd")


class Backend(Protocol):
    """Loaded model."""

    spec: ModelSpec
    name: str  # text with the runtime, its version and its device
    fallback: str  # why ONNX Runtime runs instead of TensorRT; empty if it does not

    def infer(self, batch: UInt8Array) -> Float32Array:
        """Run a batch (B, H, W, 3) in BGR, of the network's size; return (B, K, 6).

        B is `spec.batch`: a caller with fewer frames fills up the batch and ignores the extra
        rows. `ModelSpec` describes a row. Buffers are shared: not for several threads at once.
        InferenceError: the runtime failed.
        """


def open_backend(
    path: str | Path | ModelFile,
    *,
    runtime: str = "auto",
    allow_fallback: bool = False,
    may_build: bool = True,
    rebuild: bool = False,
    progress: Callable[[str], None] = LOG.warning,
) -> Backend:
    """Load a model file; TensorRT first builds the engine if the cache has no valid one.

    Args:
        path: a model.onnx with a `ModelSpec` in its metadata, or what `read_model_file` returned.
        runtime: one of RUNTIMES; "auto": TensorRT if it is installed.
        allow_fallback: use ONNX Runtime if TensorRT was chosen and fails; `progress` and the
            backend's name report it.
        may_build: False for a model that is loaded in flight: a build occupies the GPU for
            minutes, so TensorRT needs an engine in the cache.
        rebuild: build the engine even if the cache has a valid one, or one that was refused.
        progress: called with lines of text; every few seconds during a build.

    Raises:
        ModelError: the file is unusable, or unusable with this runtime; the message is one line.
    """
    if runtime not in RUNTIMES:
        raise ModelError(f"runtime: expected {' or '.join(RUNTIMES)}, got {one_line(runtime)}")
    file = path if isinstance(path, ModelFile) else read_model_file(path)
    # Deferred: importing ONNX Runtime takes a while.
    from drone_kd.backends.onnx_runtime import OrtBackend, read_spec

    if runtime == "auto" and not tensorrt_is_installed():
        if l4t():
            progress(f"this is a Jetson without TensorRT's Python module: {_INSTALL_TENSORRT}")
        runtime = "onnxruntime"
    if runtime == "onnxruntime":
        return OrtBackend(file)
    spec = read_spec(file)
    try:
        try:
            from drone_kd.backends.tensorrt.build import open_tensorrt  # imports TensorRT
        # AttributeError: it is older than 8.6; OSError: pip's package lacks a library.
        except (ImportError, AttributeError, OSError) as error:
            raise ModelError(
                f"TensorRT cannot be imported ({one_line(error)}): expected 8.6 or newer, as it "
                f"comes with JetPack: {_INSTALL_TENSORRT}"
            ) from error
        return open_tensorrt(file, spec, may_build, rebuild, progress)
    except ModelError as error:
        if not allow_fallback:
            hint = "; runtime onnxruntime or allow_fallback avoids TensorRT"
            raise ModelError(f"{error}{hint if runtime == 'auto' else ''}") from error
        backend = OrtBackend(file, fallback=str(error))
        progress(f"TensorRT failed, using ONNX Runtime instead: {error}")
        return backend


def tensorrt_is_installed() -> bool:
    """Return whether TensorRT is installed; it may still fail to load."""
    return importlib.util.find_spec("tensorrt") is not None
