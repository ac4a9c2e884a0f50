"""Runtimes that execute a model file."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from drone_kd.core.spec import ModelError, ModelSpec


class Backend(Protocol):
    """A loaded model.

    Attributes:
        spec: what the model file says of itself.
        name: runtime, its version and its device, for people.
    """

    spec: ModelSpec
    name: str

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


def open_backend(path: str | Path) -> Backend:
    """Load a model file with the runtime its suffix asks for.

    Raises:
        ModelError: the file cannot be used; the message is one line.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ModelError(f"{path}: expected a file that ends in .onnx")
    from drone_kd.backends.ort import OrtBackend  # deferred: a runtime is imported when used

    return OrtBackend(path)
