"""How ROS traffic travels: on this machine only, and in a memory that large images fit in.

Environment variables: they hold for nodes that are made afterwards, here and in processes that
are started from here.
"""

from __future__ import annotations

import os

from drone_kd.paths import config_path

# Fast DDS 2, of Humble and Jazzy, knows the older name alone; Fast DDS 3 warns about it.
_PROFILES_FILES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
_OLD_NAME = ("humble", "jazzy")


def stay_on_this_machine() -> None:
    """Let nodes meet nobody beyond this machine. Call it before rclpy is imported."""
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    if os.environ.get("ROS_DISTRO") == "humble":  # which knows only the older name
        os.environ["ROS_LOCALHOST_ONLY"] = "1"
    # Both would lead elsewhere all the same.
    os.environ.pop("ROS_STATIC_PEERS", None)
    os.environ.pop("ROS_DISCOVERY_SERVER", None)


def carry_large_images() -> None:
    """Let large images arrive over Fast DDS; see `large_image_settings`."""
    os.environ.update(large_image_settings())


def large_image_settings() -> dict[str, str]:
    """Return the environment variables that make large best-effort images arrive over Fast DDS.

    None where the user has chosen a transport or a profile.
    """
    if _is_chosen():
        return {}
    return dict([remedy()])


def remedy() -> tuple[str, str]:
    """Return the environment variable and its value that a process with large images needs."""
    old = os.environ.get("ROS_DISTRO") in _OLD_NAME
    return _PROFILES_FILES[old], str(config_path("fastdds.xml"))


def large_images_are_lost() -> bool:
    """Tell whether this process uses Fast DDS's own small shared memory."""
    if not _is_chosen():
        return True
    # Where discovery stays on this machine, rmw_fastrtps does not look at the transport's name.
    is_local = os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE") == "LOCALHOST"
    return is_local and not any(os.environ.get(name) for name in _PROFILES_FILES)


def _is_chosen() -> bool:
    transport = os.environ.get("FASTDDS_BUILTIN_TRANSPORTS", "DEFAULT").partition("?")[0]
    return transport != "DEFAULT" or any(os.environ.get(name) for name in _PROFILES_FILES)
