"""DDS settings: local discovery only, and shared memory for large images.

They are environment variables, so they apply to nodes created afterwards in this process and in
its child processes.
"""

from __future__ import annotations

import os
import random

from drone_kd.paths import config_path

# Fast DDS 2 (Humble, Jazzy) knows only the older name; Fast DDS 3 warns about it.
_PROFILES_FILES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
_OLD_NAME = ("humble", "jazzy")
# Above Linux's ephemeral ports, where few look for a free domain; the tests use others.
_DOMAIN_IDS = range(215, 232)


def stay_on_this_machine() -> None:
    """Restrict discovery to this machine. Call this before rclpy is imported."""
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    if os.environ.get("ROS_DISTRO") == "humble":  # knows only the older name
        os.environ["ROS_LOCALHOST_ONLY"] = "1"
    # Both would still connect to other machines.
    os.environ.pop("ROS_STATIC_PEERS", None)
    os.environ.pop("ROS_DISCOVERY_SERVER", None)


def choose_domain() -> None:
    """Set ROS_DOMAIN_ID to a random domain, unless it is set."""
    os.environ.setdefault("ROS_DOMAIN_ID", str(random.choice(_DOMAIN_IDS)))


def carry_large_images() -> None:
    """Make large images arrive over Fast DDS; see `large_image_settings`."""
    os.environ.update(large_image_settings())


def large_image_settings() -> dict[str, str]:
    """Return the variables that make large best-effort images arrive over Fast DDS.

    Empty if the user has chosen a transport or a profile.
    """
    if _is_chosen():
        return {}
    return dict([remedy()])


def remedy() -> tuple[str, str]:
    """Return the name and value of the environment variable that large images need."""
    old = os.environ.get("ROS_DISTRO") in _OLD_NAME
    return _PROFILES_FILES[old], str(config_path("fastdds.xml"))


def large_images_are_lost() -> bool:
    """Return whether this process uses Fast DDS's default, small shared memory."""
    if not _is_chosen():
        return True
    # With local discovery rmw_fastrtps ignores the name of the transport.
    is_local = os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE") == "LOCALHOST"
    return is_local and not any(os.environ.get(name) for name in _PROFILES_FILES)


def _is_chosen() -> bool:
    transport = os.environ.get("FASTDDS_BUILTIN_TRANSPORTS", "DEFAULT").partition("?")[0]
    return transport != "DEFAULT" or any(os.environ.get(name) for name in _PROFILES_FILES)
