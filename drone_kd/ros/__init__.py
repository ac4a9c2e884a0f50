"""The border to ROS 2: nodes, parameters, messages. Only here is rclpy imported."""
