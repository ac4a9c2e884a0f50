"""Images that reach the detector without a message: from a video stream or a local camera."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from std_msgs.msg import Header

from drone_kd.core.arrays import UInt8Array


@dataclass(frozen=True)
class LocalImage:
    """An image of this process, in the place of its message."""

    header: Header
    pixels: Callable[[], UInt8Array]  # (h, w, 3) BGR; converted by the thread that needs them
