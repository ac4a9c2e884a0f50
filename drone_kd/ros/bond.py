"""Bond: heartbeats by which nav2's lifecycle manager sees that an active node lives.

The protocol is that of the package `bond`: both sides publish their state on one topic. This node
only publishes; it ignores the state of the manager.
"""

from __future__ import annotations

import contextlib
from uuid import uuid4

from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.qos import QoSProfile

from drone_kd.ros.life_cycle import RespondingNode

TOPIC = "bond"
PERIOD_SECONDS = 0.5
# After which the other side may give up; nav2's manager uses its own `bond_timeout`.
_TIMEOUT_SECONDS = 4.0
_STOP = Duration(seconds=0.1)


def start_bond(node: RespondingNode, stack: contextlib.ExitStack) -> None:
    """Publish heartbeats until the stack is closed; without the package `bond` do nothing."""
    try:
        from bond.msg import Status
    except ImportError:
        return
    publisher = node.create_publisher(Status, TOPIC, QoSProfile(depth=5))
    stack.callback(node.destroy_publisher, publisher)
    status = Status(
        id=node.get_name(),
        instance_id=str(uuid4()),
        heartbeat_timeout=_TIMEOUT_SECONDS,
        heartbeat_period=PERIOD_SECONDS,
    )

    def publish(active: bool) -> None:
        status.header.stamp = node.get_clock().now().to_msg()
        status.active = active
        publisher.publish(status)

    def end() -> None:
        publish(False)
        publisher.wait_for_all_acked(_STOP)

    stack.callback(end)
    # The machine's own clock: a paused simulation must not stop the heartbeats.
    clock = Clock(clock_type=ClockType.STEADY_TIME)
    timer = node.create_timer(
        PERIOD_SECONDS, lambda: publish(True), callback_group=node.always, clock=clock
    )
    stack.callback(node.destroy_timer, timer)
    publish(True)
