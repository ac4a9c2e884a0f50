"""How both nodes start and end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Protocol

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from drone_kd.media.image_files import SourceError
from drone_kd.ros.params import SettingsError

# How long a signal may have to wait for the executor.
_POLL_SECONDS = 0.1


class StoppableNode(Protocol):
    """A rclpy node with threads of its own."""

    def stop(self) -> bool:
        """End the threads; False if one of them hangs."""

    def destroy_node(self) -> None:
        """Take the node down."""


def run_node(
    name: str, make_node: Callable[[threading.Event], StoppableNode], args: list[str] | None
) -> int:
    """Make a node and spin it until SIGINT, SIGTERM or its own end.

    Args:
        name: the program, for its error line.
        make_node: makes the node; the node sets the event it is given when it has finished.
        args: command line without the program's name; None: the process's own.

    Returns:
        0: it ended as asked; 2: wrong input, said in one line on standard error.
    """
    # rclpy's own handlers shut ROS down at once: no last message or log line would get out, and
    # KeyboardInterrupt would be raised at any place of the shutdown.
    finished = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: finished.set())
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except Exception as error:  # a wrong --ros-args; the class differs between distributions
        return _fail(name, error)
    node, stopped = None, True
    try:
        node = make_node(finished)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not finished.is_set():
            executor.spin_once(timeout_sec=_POLL_SECONDS)
    except (ParameterException, SettingsError, SourceError) as error:
        return _fail(name, error)
    finally:
        if node is not None:
            stopped = node.stop()
            node.destroy_node()
        rclpy.try_shutdown()
    if not stopped:
        # A thread is deep inside a runtime and cannot be interrupted: leave without it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


def _fail(name: str, error: Exception) -> int:
    print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
