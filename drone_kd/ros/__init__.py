"""ROS 2 interface: the detector node, its parameters and messages."""

from drone_kd.ros.memory import share_one_heap

share_one_heap()
