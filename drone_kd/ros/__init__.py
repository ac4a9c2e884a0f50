"""The border to ROS 2: nodes, parameters, messages. Only here is rclpy imported."""

from drone_kd.ros.memory import share_one_heap

share_one_heap()
