"""Lifecycle node that responds during its own transitions, and outlives their exceptions."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from functools import partial, wraps
from inspect import signature
from typing import Any, TypeVar

from lifecycle_msgs.srv import ChangeState
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.task import Future

from drone_kd.ros.survival import Surviving, describe
from drone_kd.text import one_line

# Of a text that may quote what others sent.
_SHOWN_CHARACTERS = 300

_Node = TypeVar("_Node", bound="RespondingNode")
_Transition = Callable[[_Node, LifecycleState], TransitionCallbackReturn]


def transition(callback: _Transition[_Node]) -> _Transition[_Node]:
    """Count and log the exception of a transition, which rclpy would swallow; it is an ERROR."""

    @wraps(callback)
    def counted(node: _Node, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return callback(node, state)
        except Exception as error:  # of any kind
            node.log_transition_failure(
                f"Transition {callback.__name__.removeprefix('on_')}", error
            )
            return TransitionCallbackReturn.ERROR

    return counted


class RespondingNode(Surviving, LifecycleNode):  # type: ignore[misc]  # the mixin's signatures
    """Lifecycle node whose transitions run in a thread of their own.

    Meanwhile the executor calls what is in the callback group `always`: the services that tell the
    state, and what the node adds. Everything else waits, as if the executor made the transition.
    """

    def __init__(self, name: str) -> None:
        # Humble has no services for the levels of loggers.
        has_logger_service = "enable_logger_service" in signature(Node.__init__).parameters
        options = {"enable_logger_service": True} if has_logger_service else {}
        super().__init__(name, **options)
        self.always = MutuallyExclusiveCallbackGroup()
        self._transition: threading.Thread | None = None
        change = self._service_change_state
        self._change_state = change.callback
        self._guarded_change = self.guarded_service(self._on_change_state, change.srv_name)
        for service in self.services:
            # Those of the parameters are guarded already; a second time does no harm.
            service.callback = self.guarded_service(service.callback, service.srv_name)
        change.callback = self._change_state_in_background
        for service in (
            self._service_get_state,
            self._service_get_available_states,
            self._service_get_available_transitions,
            self._service_get_transition_graph,
        ):
            service.callback_group = self.always
            self.always.add_entity(service)

    @property
    def state(self) -> str:
        """Name of the state, or of the transition in progress, such as "configuring"."""
        return str(self._state_machine.current_state[1])

    def call_soon(self, function: Callable[[], None]) -> None:
        """Call a function once, as a transition: in its thread, when the executor spins."""

        async def call() -> None:
            self.destroy_timer(timer)
            await self._in_background(self.guarded(function, "Callback"))

        # A simulation's clock may stand still.
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        timer = self._rclpy().create_timer(0.0, call, clock=clock)

    def is_in_transition(self) -> bool:
        """Return whether a transition runs in a thread other than this one."""
        thread = self._transition
        return thread not in (None, threading.current_thread()) and thread.is_alive()

    def join_transition(self, timeout_s: float) -> bool:
        """Wait for the end of a transition; False if it takes longer."""
        if self._transition is not None and self.is_in_transition():
            self._transition.join(timeout_s)
        return not self.is_in_transition()

    def log_transition_failure(self, what: str, error: Exception) -> None:
        """Count and log an exception; unlike `log_failure` each one, for they are few."""
        line = f"{what} failed: {describe(error)}"
        self.failures.count(line)
        self.get_logger().error(line)

    async def _change_state_in_background(self, request: Any, response: Any) -> Any:
        return await self._in_background(partial(self._guarded_change, request, response))

    def _in_background(self, function: Callable[[], Any]) -> Future[Any]:
        """Call a function, which raises nothing, in a thread; return its future result."""
        executor = self.executor
        assert executor is not None  # which calls this
        future: Future[Any] = Future(executor=executor)

        def run() -> None:
            future.set_result(function())
            with contextlib.suppress(RuntimeError):  # the executor has ended
                executor.wake()  # to look at the future

        thread = threading.Thread(target=run, name="transition", daemon=True)
        thread.start()
        self._transition = thread
        return future

    def _on_change_state(
        self, request: ChangeState.Request, response: ChangeState.Response
    ) -> ChangeState.Response:
        """Reject a transition that the state does not allow: Humble and Jazzy die of it."""
        try:
            return self._change_state(request, response)
        except RuntimeError as error:  # rclpy's RCLError, which has no public name
            reason = one_line(error, _SHOWN_CHARACTERS)
            self.get_logger().error(f"Transition not possible in this state: {reason}")
            response.success = False
            return response
