"""Running a node as a process: start, signals, exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from drone_kd.media.errors import SourceError
from drone_kd.ros.params import SettingsError
from drone_kd.ros.survival import Failures, outlive
from drone_kd.text import one_line

# Exit code after which a new process may succeed; EX_TEMPFAIL of sysexits.h.
RESTART_CODE = 75
# Longest time until a signal is noticed.
_POLL_SECONDS = 0.1
# Of the text of an error.
_SHOWN_CHARACTERS = 500


class RestartNeededError(RuntimeError):
    """Something that only a new process recovers from; the message is one line."""


class StopFlag:
    """Flag that a signal handler may set at any moment.

    `threading.Event` takes a lock for it: a handler that interrupts another `set` waits for ever.
    """

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        """Request the end of the process."""
        self._is_set = True

    def is_set(self) -> bool:
        """Return whether the process has to end."""
        return self._is_set


def run_node(
    name: str,
    make_node: Callable[[StopFlag], Any],
    args: list[str] | None,
    survives: bool = False,
    ends_with: tuple[type[Exception], ...] = (),
) -> int:
    """Make a node and spin it until SIGINT, SIGTERM or its own end.

    Args:
        name: of the program, for its error line.
        make_node: returns the node, which sets the given flag when it has finished. Its `stop`
            ends its threads and returns False if one of them hangs.
        args: command line without the program's name; None: that of this process.
        survives: count and log an exception of a callback and continue, instead of ending.
        ends_with: exceptions that end the node nevertheless.

    Returns:
        0: ended as requested; 2: wrong input, one line on standard error; RESTART_CODE: after a
        RestartNeededError, likewise.
    """
    # rclpy's own handlers shut ROS down at once: last messages and log lines would be lost, and
    # KeyboardInterrupt could be raised anywhere during shutdown.
    finished = StopFlag()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: finished.set())
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except Exception as error:  # a wrong --ros-args; the class differs between distributions
        hint = "set ROS_LOG_DIR to a folder that can be written" if "logging" in str(error) else ""
        return _fail(name, error, hint)
    node, stopped, code = None, True, 0
    executor = SingleThreadedExecutor()
    try:
        node = _made(make_node, finished)
        executor.add_node(node)
        failures = getattr(node, "failures", None) or Failures()
        while not finished.is_set():
            try:
                executor.spin_once(timeout_sec=_POLL_SECONDS)
            except Exception as error:  # of any kind: what others send must not end a flying node
                if not survives or isinstance(error, ends_with) or not rclpy.ok():
                    raise
                outlive(node, failures, error)
    except (ParameterException, SettingsError, SourceError, RestartNeededError) as error:
        code = _fail(name, error)
    finally:
        if node is not None:
            stopped = node.stop()
        # Before its context ends: collected later, it prints a traceback of an invalid handle.
        executor.shutdown(timeout_sec=0)
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    if not stopped:
        # A thread inside a runtime cannot be interrupted: exit without it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _made(make_node: Callable[[StopFlag], Any], finished: StopFlag) -> Any:
    """Return a new node; SettingsError: ROS refuses it, e.g. without its SROS2 key."""
    try:
        return make_node(finished)
    except RuntimeError as error:  # rclpy's RCLError, which has no public name
        raise SettingsError(str(error)) from None


def _fail(name: str, error: Exception, hint: str = "") -> int:
    reason = one_line(error, _SHOWN_CHARACTERS) + (f"; {hint}" if hint else "")
    print(f"{name}: error: {reason}", file=sys.stderr)
    return RESTART_CODE if isinstance(error, RestartNeededError) else 2
