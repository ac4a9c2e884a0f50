"""Prints the heartbeats on `bond`: id, instance and whether it is active."""

import rclpy
from bond.msg import Status

if __name__ == "__main__":
    rclpy.init()
    node = rclpy.create_node("bond_listener")
    node.create_subscription(
        Status, "bond", lambda m: print("bond", m.id, m.instance_id, m.active, flush=True), 100
    )
    print("listening", flush=True)
    rclpy.spin(node)
