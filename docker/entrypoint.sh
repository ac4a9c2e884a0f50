#!/bin/sh
# Run a command with ROS 2, if the image has one, and drone_kd in its environment.
if [ -e "/opt/ros/${ROS_DISTRO:-none}/setup.sh" ]; then
    # shellcheck disable=SC1090
    . "/opt/ros/$ROS_DISTRO/setup.sh"
    # shellcheck disable=SC1091
    . /opt/drone_kd/local_setup.sh
fi
exec "$@"
