"""ROS 2 interface: the detector node, its parameters and messages."""
