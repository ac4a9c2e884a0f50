"""Entry point of the detector's process: settings of malloc, then the node."""

from __future__ import annotations

import signal
import sys

from drone_kd.ros.memory import share_one_heap


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; see `run_node`."""
    # While it imports, which takes a second: Python's KeyboardInterrupt prints a traceback or is
    # taken for a failed import, and a shell's background processes ignore SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    share_one_heap()
    from drone_kd.ros.detector_node import main  # deferred: rclpy starts threads

    return main(args)


if __name__ == "__main__":
    sys.exit(main())
