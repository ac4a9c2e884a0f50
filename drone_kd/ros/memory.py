"""How a node's process takes memory, and gives it back."""

import ctypes

_M_ARENA_MAX = -8  # of glibc's malloc.h


def share_one_heap() -> None:
    """Make all threads of this process take memory from one heap.

    glibc gives a thread a heap of its own, and keeps in it what a freed model leaves between what
    is still in use: with threads for each load, a node grew from 297 to 341 MB in 13 swaps. It
    has to be said before rclpy is imported, which starts threads.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # another C library
        mallopt(_M_ARENA_MAX, 1)


def return_memory() -> None:
    """Give the pieces that loading a model and a freed model leave back to the system.

    glibc would keep them: loading took 16 MB, and four swaps made a node grow from 210 to 283 MB.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # another C library
        trim(0)
