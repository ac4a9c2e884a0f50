#!/usr/bin/env python3
"""Health check of a container: exit code 0 while a detector reports and reports no error.

Reads one message of /diagnostics. A silent camera is not the detector's fault.
"""

from __future__ import annotations

import sys
from time import monotonic

try:
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
except ImportError as error:
    sys.exit(f"health: expected ROS 2, got: {error}; start the container with --no-healthcheck")

PATIENCE_S = 10.0


def judge(statuses: list[DiagnosticStatus]) -> str:
    """Return the first error among the statuses; empty: none."""
    errors = (
        status
        for status in statuses
        if status.level == DiagnosticStatus.ERROR and not status.message.startswith("no image")
    )
    return next((f"{status.name}: {status.message}" for status in errors), "")


def main() -> str:
    """Return what is wrong; empty: nothing."""
    rclpy.init()
    node = rclpy.create_node("health")
    reports: list[list[DiagnosticStatus]] = []

    def receive(message: DiagnosticArray) -> None:
        keys = {value.key for status in message.status for value in status.values}
        if "last failure" in keys:  # a detector's
            reports.append(message.status)

    node.create_subscription(DiagnosticArray, "/diagnostics", receive, 10)
    end = monotonic() + PATIENCE_S
    while not reports and monotonic() < end:
        rclpy.spin_once(node, timeout_sec=1.0)
    rclpy.try_shutdown()
    return judge(reports[0]) if reports else f"no report of a detector within {PATIENCE_S:.0f} s"


if __name__ == "__main__":
    sys.exit(main() or 0)
