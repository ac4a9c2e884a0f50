"""The model of a configured node: swap, roll-back and loading in the background."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rclpy.impl.rcutils_logger import RcutilsLogger

from drone_kd.ros.memory import return_memory
from drone_kd.ros.model_loader import Loader, Model
from drone_kd.ros.params import Settings
from drone_kd.ros.survival import Failures, describe
from drone_kd.text import one_line

# Of the text of an error, which may quote what others sent.
_SHOWN_CHARACTERS = 300


class ModelSlot:
    """Holds the current and the previous model; a swap does not interrupt detection.

    The previous model stays loaded, so that a roll-back does not depend on a file. The one before
    stays until the current one has published its first result. All methods run in the executor's
    thread.

    Args:
        model: the first current model.
        loader: loads models in the background; `finish_load` is due when it is ready.
        settings: returns the node's current settings.
        write_parameter: sets the node's parameter `model`.
        on_swap: called with each new current model, but not with the first one. Returns whether
            `settle` will be called with it.
        failures: of the node.
        log: the node's.

    Attributes:
        problem: what is wrong with `model`; empty: nothing.
    """

    def __init__(
        self,
        model: Model,
        loader: Loader,
        settings: Callable[[], Settings],
        write_parameter: Callable[[str], object],
        on_swap: Callable[[Model], bool],
        failures: Failures,
        log: RcutilsLogger,
    ) -> None:
        self.model = model
        self._previous: Model | None = None
        self._before_previous: Model | None = None  # until `model` is settled
        self._loader = loader
        self._settings = settings
        self._write_parameter = write_parameter
        self._on_swap = on_swap
        self._failures = failures
        self._log = log
        self.is_writing = False  # the slot itself sets the parameter
        self.problem = ""
        self._rejection = ""  # of the last model that was rejected, until a swap succeeds
        self._note_fallback()

    def request(self, parameter: str, path: Path | None, settings: Settings) -> None:
        """Start to load a model in the background, unless the slot itself set the parameter."""
        if self.is_writing:
            return
        self._loader.request(parameter, path, settings)
        self._log.info(f"Loading {one_line(parameter) or 'the default model'}")

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
            self._swap(model)
        except Exception as error:  # a runtime's own exceptions have no common base class
            self._reject(f"cannot load {one_line(parameter)}", error)
            return
        self._log.info(f"Swapped to model {model}")

    def settle(self, model: Model, error: Exception | None) -> None:
        """Note that a model has published its first result, or was swapped out with an error."""
        if model is not self.model:  # swapped meanwhile
            return
        if error is None:
            self._before_previous = None
        elif self._previous is not None:
            self.model, self._previous = self._previous, self._before_previous
            self._before_previous = None
            self._note_fallback()
            self._reject(f"model {one_line(model.path.name)} failed with its first image", error)
        return_memory()

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
        before = self.model, self._previous, self._before_previous
        self._before_previous, self._previous, self.model = self._previous, self.model, model
        try:
            will_settle = self._on_swap(model)
        except BaseException:
            self.model, self._previous, self._before_previous = before
            raise
        self._note_fallback()
        self._failures.resolve(self._rejection)
        if not will_settle:
            self.settle(model, None)

    def _reject(self, what: str, error: Exception) -> None:
        """Count why a model is not used, set the parameter back, and log it."""
        reason = one_line(error, _SHOWN_CHARACTERS) or describe(error)
        line = f"{what}: {reason}; keeping {one_line(self.model.path.name)}"
        self._rejection = line
        self._failures.count(line)
        self._restore_parameter()
        self._log.error(line)

    def _restore_parameter(self) -> None:
        """Set the parameter to the value that the current model was loaded for."""
        self.is_writing = True
        try:
            self._write_parameter(self.model.parameter)
        finally:
            self.is_writing = False

    def _note_fallback(self) -> None:
        fallback = self.model.backend.fallback
        self.problem = f"ONNX Runtime serves instead of TensorRT: {fallback}" if fallback else ""
        if fallback:
            self._log.warning(one_line(self.problem, 2 * _SHOWN_CHARACTERS))
