"""Skip the tests of the nodes where ROS 2 is missing."""

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not here")
pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not here")
