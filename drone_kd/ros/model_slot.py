"""The model of a configured node: swap, roll-back and loading in the background."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rclpy.impl.rcutils_logger import RcutilsLogger

from drone_kd.core.model_spec import ModelError
from drone_kd.ros.memory import return_memory
from drone_kd.ros.model_loader import Loader, Model
from drone_kd.ros.params import Settings
from drone_kd.ros.survival import Failures, describe
from drone_kd.text import one_line

# Of the text of an error, which may quote what others sent.
_SHOWN_CHARACTERS = 300


class ModelSlot:
    """Holds the current and the previous model; a swap does not interrupt detection.

    A model is settled once it has published a result, and the first one from the start. The last
    settled model stays loaded, whatever replaces it, until another one is settled, and the one
    before it: a roll-back or a model that fails does not depend on a file. One whose inference
    hangs does not count. All methods run in the executor's thread.

    Args:
        model: the first current model.
        loader: loads models in the background; `finish_load` is due when it is ready.
        settings: returns the node's current settings.
        write_parameter: sets the node's parameter `model`.
        on_swap: called with each new current model, but not with the first one, and with
            `former`.
        is_busy: returns whether an inference of a model goes on that nobody waits for any more.
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
        on_swap: Callable[[Model, Model | None], None],
        is_busy: Callable[[Model], bool],
        failures: Failures,
        log: RcutilsLogger,
    ) -> None:
        self.model = model
        self._previous: Model | None = None
        # The last settled model, and the previous one of that time.
        self._settled: tuple[Model, Model | None] = model, None
        self._loader = loader
        self._settings = settings
        self._write_parameter = write_parameter
        self._on_swap = on_swap
        self._is_busy = is_busy
        self._failures = failures
        self._log = log
        self.is_writing = False  # the slot itself sets the parameter
        self.problem = ""
        self._rejection = ""  # of the last model that was rejected, until a swap succeeds
        self._note_fallback()

    def check(self, settings: Settings) -> None:
        """Raise ValueError unless settings suit the model, and the one it may return to."""
        settings.check(self.model.backend)
        if (former := self.former()) is not None:
            try:
                settings.check(former.backend)
            except ValueError as error:
                name = one_line(former.path.name)
                raise ValueError(
                    f"{error}; {name} is used again if the new model fails with its first image: "
                    "set it after that image"
                ) from None

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
        what = f"cannot load {one_line(parameter)}"
        if isinstance(model, Exception):
            self._reject(what, model)
            return
        try:
            self._settings().check(model.backend)  # they may have changed during the load
            if self._is_busy(model):
                raise ModelError("an inference of this model hangs")
            self._swap(model)
        except Exception as error:  # a runtime's own exceptions have no common base class
            self._reject(what, error)
            return
        self._log.info(f"Swapped to model {model}")
        return_memory()  # that of an unsettled model which it replaced

    def former(self) -> Model | None:
        """Return the model to use if the current one fails with its first frame; None: none."""
        former = self._settled[0]
        return None if former is self.model or self._is_busy(former) else former

    def settle(self, model: Model, error: Exception | None) -> None:
        """Note that a model has published its first result, or was swapped out with an error."""
        if model is not self.model:  # swapped meanwhile
            return
        if error is None:
            self._settled = model, self._previous
        elif model is not self._settled[0]:
            self.model, self._previous = self._settled
            self._note_fallback()
            self._reject(f"model {one_line(model.path.name)} failed with its first image", error)
        return_memory()

    def replace_hanging(self, model: Model, line: str) -> None:
        """Return from a model whose inference hangs to a settled one, if there is one.

        Args:
            model: the model.
            line: says that it hangs.
        """
        if model is self.model:
            others = [m for m in self._settled if m is not None and not self._is_busy(m)]
            if others:
                self.model, self._previous = others[0], None
                self._settled = others[0], None
                self._note_fallback()
        else:
            self._forget_hanging(self.model)
            if self._previous is model and self._settled[0] is not self.model:
                self._previous = self._settled[0]
        if self._is_busy(self.model):
            self._failures.count(line)
            self._log.error(f"{line}; no other model is loaded: set one, or restart the node")
            return
        self._on_swap(self.model, self.former())
        self._reject("detection", ModelError(line))

    def roll_back(self) -> Model:
        """Swap current and previous model, drop a load in progress; return the new current one.

        Raises:
            ValueError: there is no previous model, or the settings do not suit it.
        """
        if self._previous is None:
            raise ValueError("there was no other model since the node was configured")
        self._settings().check(self._previous.backend)  # they may have changed since
        if self._is_busy(self._previous):
            raise ValueError("an inference of the previous model hangs")
        self._loader.forget()
        self._swap(self._previous)
        self._restore_parameter()
        return self.model

    def _forget_hanging(self, current: Model) -> None:
        """Replace a settled model whose inference hangs: by the other one, or the current."""
        settled, other = self._settled
        if self._is_busy(settled):
            if other is None or self._is_busy(other):
                other = current
            self._settled = other, None

    def _swap(self, model: Model) -> None:
        before = self.model, self._previous, self._settled
        self._forget_hanging(model)
        settled = self._settled[0]
        # After a roll-back the next one undoes it; else to a model that is known to work.
        self._previous = self.model if settled in (self.model, model) else settled
        self.model = model
        try:
            self._on_swap(model, self.former())
        except BaseException:
            self.model, self._previous, self._settled = before
            raise
        self._note_fallback()
        self._failures.resolve(self._rejection)

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
