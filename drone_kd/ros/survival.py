"""Nodes that outlive the exceptions of their callbacks, and count them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from time import monotonic
from traceback import extract_tb
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.node import Node

from drone_kd.ros.stats import WINDOW_SECONDS
from drone_kd.text import one_line

_THROTTLE_SECONDS = 5.0
# Of a request: each item takes time in which no frame is received.
_REQUEST_NAMES = 1000
MAX_REQUEST_PARAMETERS = 50
MAX_REQUEST_VALUES = 200_000  # characters and elements of arrays
# Of the text of an exception, which may quote what others sent.
_SHOWN_CHARACTERS = 300


def describe(error: BaseException) -> str:
    """Return class and text of an exception as one short line."""
    try:
        text = one_line(error, _SHOWN_CHARACTERS)
    except Exception:  # of its own __str__
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@dataclass(frozen=True)
class FailureReport:
    """Failures up to one moment."""

    count: int
    last: str  # one line; empty: there was none
    is_recent: bool  # the last one is within the window of the statistics


class Failures:
    """Counts what failed without ending the node; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._last = ""
        self._at = 0.0

    def count(self, line: str) -> int:
        """Count a failure, described by one line; return the number of all so far."""
        with self._lock:
            self._count += 1
            self._last, self._at = line, monotonic()
            return self._count

    def resolve(self, line: str) -> None:
        """Note that the cause of a failure is gone; the count stays."""
        with self._lock:
            if self._last == line:
                self._at = float("-inf")

    def report(self) -> FailureReport:
        """Return the number of failures, and the last one."""
        with self._lock:
            is_recent = self._count > 0 and monotonic() - self._at < WINDOW_SECONDS
            return FailureReport(self._count, self._last, is_recent)


def log_failure(
    ros_log: RcutilsLogger, failures: Failures, what: str, error: BaseException
) -> str:
    """Count and log an exception that a node outlives; return its line."""
    line = f"{what} failed: {describe(error)}"
    count = failures.count(line)
    ros_log.error(f"{line} ({count} failed so far)", throttle_duration_sec=_THROTTLE_SECONDS)
    return line


class Surviving:
    """Mixin for a node, before its class: an exception of a callback is counted and logged.

    This covers subscriptions, timers, guard conditions and services, those of rclpy's parameters
    included. The caller of a service gets a response: without success, or empty.

    Attributes:
        failures: their count.
        ends_with: exceptions that do end the node.
    """

    ends_with: tuple[type[Exception], ...] = ()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        # Before the parameters' services are created.
        self.failures = Failures()
        super().__init__(*arguments, **options)

    def create_subscription(
        self, msg_type: Any, topic: str, callback: Callable[..., None], *args: Any, **options: Any
    ) -> Any:
        """Subscribe; see `rclpy.node.Node.create_subscription`."""
        guarded = self.guarded(callback, "Callback")
        return self._rclpy().create_subscription(msg_type, topic, guarded, *args, **options)

    def create_timer(
        self, period: float, callback: Callable[[], None], *args: Any, **options: Any
    ) -> Any:
        """Create a timer; see `rclpy.node.Node.create_timer`."""
        return self._rclpy().create_timer(
            period, self.guarded(callback, "Callback"), *args, **options
        )

    def create_guard_condition(
        self, callback: Callable[[], None], *args: Any, **options: Any
    ) -> Any:
        """Create a guard condition; see `rclpy.node.Node.create_guard_condition`."""
        return self._rclpy().create_guard_condition(
            self.guarded(callback, "Callback"), *args, **options
        )

    def create_service(
        self, srv_type: Any, name: str, callback: Callable[..., Any], *args: Any, **options: Any
    ) -> Any:
        """Create a service; see `rclpy.node.Node.create_service`."""
        guarded = self.guarded_service(callback, name)
        return self._rclpy().create_service(srv_type, name, guarded, *args, **options)

    def guarded(self, callback: Callable[..., None], what: str) -> Callable[..., None]:
        """Return a callback that counts its exceptions."""

        # `wraps` keeps the signature, from which rclpy derives the arguments.
        @wraps(callback)
        def guard(*arguments: Any, **options: Any) -> None:
            try:
                callback(*arguments, **options)
            except self.ends_with:
                raise
            except Exception as error:  # of any kind: what others send must not end a node
                self._note_failure(what, error)

        return guard

    def guarded_service(
        self, callback: Callable[[Any, Any], Any], name: str
    ) -> Callable[[Any, Any], Any]:
        """Return a service's callback that counts its exceptions, and responds nevertheless."""

        def guard(request: Any, response: Any) -> Any:
            try:
                check_request(request)
                return with_short_reasons(callback(request, response))
            except Exception as error:  # of any kind, as above
                line = self._note_failure(f"Service {one_line(name)}", error)
                return rejection(request, type(response)(), line)

        return guard

    def _note_failure(self, what: str, error: Exception) -> str:
        node: Any = self
        return log_failure(node.get_logger(), self.failures, what, error)

    def _rclpy(self) -> Any:
        """Return the methods of the node's class, whose signatures differ by distribution."""
        return super()


def check_request(request: Any) -> None:
    """Raise ValueError if a request of a parameter service is too long, or a name is empty."""
    for field in ("names", "prefixes"):
        _check_length(field, len(getattr(request, field, ())), _REQUEST_NAMES)
    parameters = getattr(request, "parameters", ())
    _check_length("parameters", len(parameters), MAX_REQUEST_PARAMETERS)
    length = sum(len(p.name) + _length(getattr(p, "value", None)) for p in parameters)
    _check_length("characters and values", length, MAX_REQUEST_VALUES)
    # rclpy would add it to the node.
    if any(not parameter.name for parameter in parameters):
        raise ValueError("expected the name of a parameter, got an empty one")


def _check_length(what: str, got: int, limit: int) -> None:
    if got > limit:
        raise ValueError(f"expected up to {limit} {what} in a request, got {got}")


def _length(value: Any) -> int:
    """Return how many characters and elements a ParameterValue holds."""
    if value is None:
        return 0
    arrays = (
        getattr(value, f"{kind}_array_value") for kind in ("byte", "bool", "integer", "double")
    )
    texts = value.string_array_value
    # Each text counts one more, so that empty ones count.
    return len(value.string_value) + sum(map(len, arrays)) + sum(map(len, texts)) + len(texts)


def rejection(request: Any, response: Any, reason: str) -> Any:
    """Fill in a new response of a service that failed: no success, and the reason."""
    if hasattr(response, "results"):  # SetParameters: one per parameter
        response.results = [
            SetParametersResult(successful=False, reason=reason)
            for _ in request.parameters[:_REQUEST_NAMES]
        ]
    elif isinstance(getattr(response, "result", None), SetParametersResult):
        response.result = SetParametersResult(successful=False, reason=reason)
    elif hasattr(response, "success"):
        response.success = False
        if hasattr(response, "message"):
            response.message = reason
    return response


def with_short_reasons(response: Any) -> Any:
    """Shorten the reasons of a parameter service's response, which quote the request."""
    results = [*getattr(response, "results", []), getattr(response, "result", None)]
    for result in results:
        if isinstance(result, SetParametersResult) and result.reason:
            result.reason = one_line(result.reason, _SHOWN_CHARACTERS)
    return response


def outlive(node: Node, failures: Failures, error: Exception) -> None:
    """Let a node go on after an exception of `spin_once`; count and log what has failed."""
    release_entities(node)
    if not met_destroyed_entity(error):
        log_failure(node.get_logger(), failures, "Callback", error)


def met_destroyed_entity(error: Exception) -> bool:
    """Return whether `spin_once` met an entity that a transition destroyed meanwhile.

    A transition runs in another thread than the executor, which looks at each entity before it
    waits. The next `spin_once` no longer has it; nothing was lost.
    """
    within = extract_tb(error.__traceback__)[1:]  # below the caller of `spin_once`
    return isinstance(error, rclpy_implementation.InvalidHandle) and all(
        "rclpy" in Path(frame.filename).parts for frame in within
    )


def release_entities(node: Node) -> None:
    """Let the executor take a node's callbacks again after an exception inside of rclpy.

    An exception while it takes a message leaves the subscription, and with it its callback group,
    marked as busy for ever: the node would live on without receiving anything.
    """
    kinds = (node.subscriptions, node.services, node.clients, node.timers, node.guards)
    for entity in (entity for kind in (*kinds, node.waitables) for entity in kind):
        if getattr(entity, "_executor_event", False):
            entity._executor_event = False
            group = entity.callback_group
            if group is not None and getattr(group, "_active_entity", None) is entity:
                group.ending_execution(entity)
