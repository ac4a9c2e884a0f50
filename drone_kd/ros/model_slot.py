"""The model of a configured node: swap, roll-back and loading in the background."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rclpy.impl.rcutils_logger import RcutilsLogger

from drone_kd.ros.model_loader import Loader, Model
from drone_kd.ros.params import Settings

# Of a path in a message; a longer one is cut.
_SHOWN_CHARACTERS = 200


class ModelSlot:
    """Holds the current and the previous model; a swap does not interrupt detection.

    The previous model stays loaded, so that a roll-back does not depend on a file. All methods run
    in the executor's thread.

    Args:
        model: the first current model.
        loader: loads models in the background; `finish_load` is due when it is ready.
        settings: returns the node's current settings.
        write_parameter: sets the node's parameter `model`.
        on_swap: called with each new current model, but not with the first one.
        log: the node's.

    Attributes:
        problem: why `model` is not the requested one; empty: it is.
    """

    def __init__(
        self,
        model: Model,
        loader: Loader,
        settings: Callable[[], Settings],
        write_parameter: Callable[[str], object],
        on_swap: Callable[[Model], None],
        log: RcutilsLogger,
    ) -> None:
        self.model = model
        self._previous: Model | None = None
        self._loader = loader
        self._settings = settings
        self._write_parameter = write_parameter
        self._on_swap = on_swap
        self._log = log
        self._is_writing = False
        self.problem = ""
        self._note_fallback()

    def check(self, settings: Settings, parameter: str | None) -> None:
        """Check settings and a new value of the parameter `model`; None: it does not change.

        Raises:
            ValueError: the settings do not suit the current model, or there is no such file.
        """
        settings.detector(self.model.backend)
        if parameter and not self._is_writing:
            _check_file(parameter)

    def request(self, parameter: str, settings: Settings) -> None:
        """Start to load a model in the background, unless the slot itself set the parameter."""
        if self._is_writing:
            return
        self._loader.request(parameter, settings)
        self._log.info(f"Loading {parameter or 'the default model'}")

    def finish_load(self) -> None:
        """Swap in the model that the loader has finished; if it is unusable, keep the current."""
        outcome = self._loader.take()
        if outcome is None:
            return
        parameter, model = outcome
        try:
            if isinstance(model, Exception):
                raise model
            self._settings().detector(model.backend)  # they may have changed during the load
        except Exception as error:  # a runtime's own exceptions have no common base class
            self.problem = f"cannot load {parameter}: {error}; keeping {self.model.path.name}"
            self._log.error(self.problem)
            self._restore_parameter()
            return
        self._swap(model)
        self._log.info(f"Swapped to model {model}")

    def roll_back(self) -> Model:
        """Swap current and previous model, drop a load in progress; return the new current one.

        Raises:
            ValueError: there is no previous model, or the settings do not suit it.
        """
        if self._previous is None:
            raise ValueError("there was no other model since the node was configured")
        self._settings().detector(self._previous.backend)  # they may have changed since
        self._loader.forget()
        self._swap(self._previous)
        self._restore_parameter()
        return self.model

    def _swap(self, model: Model) -> None:
        self._previous, self.model = self.model, model
        self._note_fallback()
        self._on_swap(model)

    def _restore_parameter(self) -> None:
        """Set the parameter to the value that the current model was loaded for."""
        self._is_writing = True
        try:
            self._write_parameter(self.model.parameter)
        finally:
            self._is_writing = False

    def _note_fallback(self) -> None:
        fallback = self.model.backend.fallback
        self.problem = f"ONNX Runtime serves instead of TensorRT: {fallback}" if fallback else ""
        if fallback:
            self._log.warning(self.problem)


def _check_file(parameter: str) -> None:
    """Raise ValueError unless the parameter `model` is the path of a file."""
    shown = (
        parameter if len(parameter) <= _SHOWN_CHARACTERS else f"{parameter[:_SHOWN_CHARACTERS]}…"
    )
    try:
        exists = Path(parameter).is_file()
    except OSError as error:  # e.g. a name that is too long, or a folder without permission
        raise ValueError(f"model: {shown}: {error.strerror}") from None
    if not exists:
        raise ValueError(f"model: {shown}: expected a model file, but there is none")
