"""The detector as a process that reports ten times a second, so that tests need not wait."""

import sys

from drone_kd.ros.memory import share_one_heap

if __name__ == "__main__":
    share_one_heap()  # as the entry point does, before rclpy is imported
    from drone_kd.ros import detector_node

    detector_node.REPORT_SECONDS = 0.1
    # The temperature of this machine stays out of the levels.
    detector_node.temperatures_c = lambda: {"cpu-thermal": 50.0}
    sys.exit(detector_node.main())
