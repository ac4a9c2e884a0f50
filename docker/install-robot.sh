#!/bin/sh
# Install the on-board part in /opt/drone_kd, as root, in an image with or without ROS 2.
#   sh install-robot.sh onnxruntime|tensorrt
set -eu
runtime=$1
source=$(cd "$(dirname "$0")/.." && pwd)
export DEBIAN_FRONTEND=noninteractive PIP_BREAK_SYSTEM_PACKAGES=1 PIP_DISABLE_PIP_VERSION_CHECK=1
setup=/opt/ros/${ROS_DISTRO:-none}/setup.sh

case $runtime in
onnxruntime | tensorrt) ;;
*)
    echo "install-robot: expected RUNTIME onnxruntime or tensorrt, got '$runtime'" >&2
    exit 2
    ;;
esac

# What of requirements/onboard.txt pip installs: $1 is a pattern of its lines.
select_requirements() {
    grep -E "$1" "$source/requirements/onboard.txt" >/tmp/requirements.txt
    [ "$runtime" = onnxruntime ] || sed -i /^onnxruntime/d /tmp/requirements.txt
}

apt-get update
if [ -e "$setup" ]; then
    apt-get install -y --no-install-recommends python3-pip
    select_requirements '^onnxruntime' # the rest comes from apt
    pip install --no-cache-dir -c "$source/requirements/sourced.txt" -r /tmp/requirements.txt
    rosdep update --rosdistro "$ROS_DISTRO"
    rosdep install --from-paths "$source" --ignore-src -y --dependency-types exec \
        --skip-keys "python3-onnxruntime-pip ros_gz_bridge ros_gz_sim"
    set +u # ROS's own scripts read unset variables
    # shellcheck disable=SC1090
    . "$setup"
    set -u
    colcon --log-base /tmp/log build --base-paths "$source" --build-base /tmp/build \
        --install-base /opt/drone_kd --merge-install
else
    # Sees JetPack's tensorrt, which is no pip package.
    apt-get install -y --no-install-recommends python3-venv
    python3 -m venv --system-site-packages /opt/drone_kd
    select_requirements '^[^#]'
    /opt/drone_kd/bin/pip install --no-cache-dir -r /tmp/requirements.txt "$source"
fi
install -m 755 "$source/docker/entrypoint.sh" "$source/docker/health.py" /opt/drone_kd
rm -rf /tmp/build /tmp/log /tmp/requirements.txt /var/lib/apt/lists/*

# An id without a name would do, but Python and ROS ask for a home folder to write logs in.
id -u 1000 >/dev/null 2>&1 || useradd --uid 1000 --no-create-home --home-dir /home/drone drone
install -d -o 1000 -g 1000 -m 700 /home/drone
