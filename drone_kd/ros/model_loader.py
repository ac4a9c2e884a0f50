"""Loading models: each one runs before it is used, another one first in a trial process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drone_kd.backends import Backend, open_backend
from drone_kd.backends.golden import read_golden, require_golden
from drone_kd.backends.model_file import ModelFile, read_model_file
from drone_kd.core.model_spec import ModelError
from drone_kd.paths import default_model_path
from drone_kd.ros.model_trial import Trial, ended_after
from drone_kd.ros.params import Settings
from drone_kd.ros.survival import describe
from drone_kd.text import one_line

_STOP_SECONDS = 1.0
# Of the text of an error.
_SHOWN_CHARACTERS = 500


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
            f"{one_line(self.path.name)} ({self.sha256[:12]}): "
            f"{spec.input_width}x{spec.input_height}, {len(spec.classes)} classes, "
            f"{self.backend.name}"
        )


def load_model(
    parameter: str,
    path: Path | None,
    settings: Settings,
    may_build: bool,
    progress: Callable[[str], None],
    trial: Callable[[ModelFile, Settings], None] | None = None,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Model:
    """Load a model file, or the package's default model, and run it on a black image.

    It must reproduce its golden images, too, if the file has some.

    Args:
        parameter: value of `model`, for which it is loaded.
        path: of the file; None: the default model.
        settings: must suit the model's classes.
        may_build, progress: see `open_backend`.
        trial: called with the content of the file before it is loaded; raises if it is unusable.
        is_stopping: asked from another thread; True: the first run is cancelled.

    Raises:
        ModelError, InferenceError, ValueError: the model is unusable; the message is one line.
    """
    # Read once: what was tried is what is loaded.
    file = read_model_file(path or default_model_path())
    if trial is not None:
        trial(file, settings)
    backend = open_backend(
        file,
        runtime=settings.runtime,
        allow_fallback=settings.allow_fallback,
        may_build=may_build,
        progress=progress,
    )
    spec = backend.spec
    with ended_after(
        settings.swap_timeout_s, is_stopping, lambda expired: cancel_inference(backend)
    ):
        settings.check(backend)
        settings.detector(backend)(np.zeros((spec.input_height, spec.input_width, 3), np.uint8))
        require_golden(backend, read_golden(file.metadata, spec))
    return Model(parameter, file.path, file.sha256, backend)


def cancel_inference(backend: Backend) -> None:
    """End an inference of another thread: it raises InferenceError.

    Only ONNX Runtime can do this, and only between two operators.
    """
    cancel = getattr(backend, "cancel", None)
    if cancel is not None:
        cancel()


class Loader:
    """Loads models in a background thread, one at a time; the latest request replaces others.

    `ready` is called in that thread when `take` has a result, `progress` with lines of text.
    """

    def __init__(self, ready: Callable[[], None], progress: Callable[[str], None]) -> None:
        self._ready = ready
        self._progress = progress
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wanted: tuple[str, Path | None, Settings] | None = None
        self._outcome: tuple[str, Model | ModelError] | None = None
        self._trial: Trial | None = None  # of the current load

    def request(self, parameter: str, path: Path | None, settings: Settings) -> None:
        """Start to load; see `load_model`."""
        with self._lock:
            self._drop()
            self._wanted = parameter, path, settings
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
                self._thread.start()

    def take(self) -> tuple[str, Model | ModelError] | None:
        """Return the parameter and the outcome of the last request, once; None: nothing new."""
        with self._lock:
            outcome, self._outcome = self._outcome, None
            return outcome

    def forget(self) -> None:
        """Drop the request; a load in progress ends without a result."""
        with self._lock:
            self._drop()

    def stop(self) -> bool:
        """Drop the request; False if a load is still in progress after a second."""
        self.forget()
        thread = self._thread
        if thread is not None:
            thread.join(_STOP_SECONDS)
        return self._thread is None

    def _drop(self) -> None:
        self._wanted = self._outcome = None
        if self._trial is not None:
            self._trial.cancel()

    def _run(self) -> None:
        while True:
            with self._lock:
                wanted = self._wanted
                if wanted is None:
                    self._thread = None
                    return
                trial = self._trial = Trial()
            outcome: Model | ModelError
            try:
                # Building an engine would take the GPU from the current model.
                outcome = load_model(
                    *wanted, may_build=False, progress=self._progress, trial=trial
                )
            except Exception as error:  # of any kind: the current model stays in use
                # A new one: its traceback, cause and context hold the file's content.
                outcome = ModelError(one_line(error, _SHOWN_CHARACTERS) or describe(error))
            with self._lock:
                self._trial = None
                if self._wanted is not wanted:  # replaced or dropped
                    continue
                self._wanted = None
                self._outcome = wanted[0], outcome
            del outcome  # or a freed model would live until the next request
            self._ready()
