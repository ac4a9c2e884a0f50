"""The border to ROS 2: nodes, parameters, messages. Only here is rclpy imported."""

import ctypes

_M_ARENA_MAX = -8  # of glibc's malloc.h


def _share_one_heap() -> None:
    """Make all threads of this process take memory from one heap.

    glibc gives a thread a heap of its own, and keeps in it what a freed model leaves between what
    is still in use: with threads for each load, a node grew from 297 to 341 MB in 13 swaps. It
    has to be said before rclpy is imported, which starts threads.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # another C library
        mallopt(_M_ARENA_MAX, 1)


_share_one_heap()
