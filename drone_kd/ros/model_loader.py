"""Loading models: each one runs once before it is used."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drone_kd.backends import Backend, open_backend
from drone_kd.backends.model_file import read_model_file
from drone_kd.paths import default_model_path
from drone_kd.ros.params import Settings


@dataclass(frozen=True)
class Model:
    """A loaded model that has run once."""

    parameter: str  # value of the parameter `model` that it was loaded for
    path: Path
    sha256: str  # of its file, 64 hex digits
    backend: Backend

    def __str__(self) -> str:
        spec = self.backend.spec
        return (
            f"{self.path.name} ({self.sha256[:12]}): {spec.input_width}x{spec.input_height}, "
            f"{len(spec.classes)} classes, {self.backend.name}"
        )


def load_model(
    parameter: str, settings: Settings, may_build: bool, progress: Callable[[str], None]
) -> Model:
    """Load a model file, or the package's default model, and run it once on a black image.

    Args:
        parameter: path of the file; empty: the default model.
        settings: must suit the model's classes.
        may_build, progress: see `open_backend`.

    Raises:
        ModelError, InferenceError, ValueError: the model is unusable; the message is one line.
    """
    path = Path(parameter) if parameter else default_model_path()
    file = read_model_file(path)
    backend = open_backend(
        file,
        runtime=settings.runtime,
        allow_fallback=settings.allow_fallback,
        may_build=may_build,
        progress=progress,
    )
    spec = backend.spec
    settings.detector(backend)(np.zeros((spec.input_height, spec.input_width, 3), np.uint8))
    return Model(parameter, path, file.sha256, backend)


class Loader:
    """Loads models in a background thread, one at a time; the latest request replaces others.

    `ready` is called in that thread when `take` has a result, `progress` with lines of text.
    """

    def __init__(self, ready: Callable[[], None], progress: Callable[[str], None]) -> None:
        self._ready = ready
        self._progress = progress
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wanted: tuple[str, Settings] | None = None
        self._outcome: tuple[str, Model | Exception] | None = None

    def request(self, parameter: str, settings: Settings) -> None:
        """Start to load; see `load_model`."""
        with self._lock:
            self._wanted = parameter, settings
            self._outcome = None
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
                self._thread.start()

    def take(self) -> tuple[str, Model | Exception] | None:
        """Return the parameter and the outcome of the last request, once; None: nothing new."""
        with self._lock:
            outcome, self._outcome = self._outcome, None
            return outcome

    def forget(self) -> None:
        """Drop the request; a load in progress ends without a result."""
        with self._lock:
            self._wanted = self._outcome = None

    def stop(self) -> bool:
        """Drop the request; False if a load is still in progress."""
        self.forget()
        return self._thread is None

    def _run(self) -> None:
        while True:
            with self._lock:
                wanted = self._wanted
                if wanted is None:
                    self._thread = None
                    return
            outcome: Model | Exception
            try:
                # Building an engine would take the GPU from the current model.
                outcome = load_model(*wanted, may_build=False, progress=self._progress)
            except Exception as error:  # of any kind: the current model stays in use
                outcome = error
            with self._lock:
                if self._wanted is not wanted:  # replaced or dropped
                    continue
                self._wanted = None
                self._outcome = wanted[0], outcome
            del outcome  # or a freed model would live until the next request
            self._ready()
