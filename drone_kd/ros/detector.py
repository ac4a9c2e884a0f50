"""Entry point of the detector's process: settings of malloc, then the node."""

from __future__ import annotations

import sys

from drone_kd.ros.memory import share_one_heap


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; see `run_node`."""
    share_one_heap()
    from drone_kd.ros.detector_node import main  # deferred: rclpy starts threads

    return main(args)


if __name__ == "__main__":
    sys.exit(main())
