#!/bin/sh
# Is what `make setup` needs from the system there? Prints one line for the first thing missing.
#   sh requirements/check.sh PYTHON
# With a ROS 2 sourced (ROS_DISTRO set) nothing is compiled, so no compiler is asked for.
python=$1
name=${python##*/}
apt="apt install $name-venv $name-dev build-essential"

fail() {
    echo "setup: $1" >&2
    exit 1
}

command -v "$python" >/dev/null ||
    fail "expected $python on PATH, found none: $apt, or name another with PYTHON=python3.12"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
    fail "expected a Python 3.10 to 3.14, but $python does not start: name another with PYTHON=python3.12"
case $version in
3.10 | 3.11 | 3.12 | 3.13) ;;
3.14)
    [ -n "${ROS_DISTRO:-}" ] ||
        fail "expected Python 3.10 to 3.13 (the ROS 2 wheels are built for no other), received 3.14 ($python): name another with PYTHON=python3.12, or source a ROS 2"
    ;;
*) fail "expected Python 3.10 to 3.14, received $version ($python): name another with PYTHON=python3.12" ;;
esac
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "expected the venv module of Python $version, found none: $apt"

if [ -n "${ROS_DISTRO:-}" ]; then
    "$python" -c 'import rclpy' 2>/dev/null ||
        fail "ROS 2 $ROS_DISTRO is sourced, but Python $version cannot import rclpy: choose the distribution's own Python with PYTHON=/usr/bin/python3, or open a shell without ROS"
    "$python" -c 'import vision_msgs.msg' 2>/dev/null ||
        fail "ROS 2 $ROS_DISTRO is sourced, but has no vision_msgs: apt install ros-$ROS_DISTRO-vision-msgs"
    exit 0
fi

machine=$(uname -sm)
[ "$machine" = "Linux x86_64" ] ||
    fail "expected Linux x86_64 (the ROS 2 wheels are built for nothing else), received $machine: install ROS 2 and source it"
"${CC:-cc}" --version >/dev/null 2>&1 ||
    fail "expected a C compiler (${CC:-cc}), found none: $apt"
"${CXX:-c++}" --version >/dev/null 2>&1 ||
    fail "expected a C++ compiler (${CXX:-c++}), found none: $apt"
"$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
    fail "expected Python.h of Python $version, found none: $apt"
